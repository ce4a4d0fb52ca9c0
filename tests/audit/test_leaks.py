"""Prompts of the evaluation data among those of training: to the letter, nearly, and not."""

import json
import random
from pathlib import Path

import numpy as np

from simpo_cli.audit.identity import prompt_hash
from simpo_cli.audit.measures import asked_text
from simpo_cli.audit.near import Leaks, find_leaks, read_prompts
from simpo_cli.audit.signatures import signatures_of
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import Message, PreferencePair
from tests.audit.test_signatures import WORDS, edited, similarity

SYSTEM = "You are a helpful assistant. " * 20


def leaks(prompts: list[object], evaluation: list[object], folder: Path) -> Leaks:
    path = folder / "eval.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "chosen": "a", "rejected": "b"}) + "\n" for p in evaluation))
    pairs = [PreferencePair(_turns(prompt), "c", "d", "") for prompt in prompts]
    hashes = np.array([prompt_hash(pair) for pair in pairs], dtype=np.uint64)
    return find_leaks(
        hashes, signatures_of([asked_text(pair) for pair in pairs]), read_prompts(PairReader(str(path), role="eval"))
    )


def _turns(prompt: object) -> tuple[Message, ...] | str:
    if isinstance(prompt, str):
        return prompt
    assert isinstance(prompt, list)
    return tuple(Message(turn["role"], turn["content"]) for turn in prompt)


def test_same_near_and_new(tmp_path: Path) -> None:
    user = {"role": "user", "content": "How do I invite a teammate?"}
    system = {"role": "system", "content": SYSTEM}
    long = "How can I change my name in the settings of the account that I use at work? " + " ".join(WORDS[:40])
    evaluation = [[user], long, "Hi", "Hi"]
    prompts = [
        "How do I invite a teammate?",  # the same, as text
        "HOW do I invite a teammate",
        [system, user],
        [system, {"role": "user", "content": "What is new?"}],
        long.replace("name", "photo"),
        "How do I remove a teammate?",
        "Hi",
        "",
    ]
    found = leaks(prompts, evaluation, tmp_path)
    assert found.same.tolist() == [0, 6]
    assert found.near.tolist() == [1, 2, 4]


def test_against_comparing_each_with_each(tmp_path: Path) -> None:
    draw = random.Random(9)
    evaluation = [" ".join(draw.choices(WORDS, k=draw.randint(10, 80))) for _ in range(60)]
    prompts = [edited(draw.choice(evaluation), draw.choice([0, 0.01, 0.05, 0.5]), draw) for _ in range(200)]
    found = leaks([*prompts], [*evaluation], tmp_path)
    assert found.same.tolist() == [i for i, prompt in enumerate(prompts) if prompt in evaluation]
    likeness = [max(similarity(prompt, other) for other in evaluation) for prompt in prompts]
    near, same = set(found.near.tolist()), set(found.same.tolist())
    assert {i for i, value in enumerate(likeness) if value > 0.9} <= near | same
    assert near <= {i for i, value in enumerate(likeness) if value > 0.45} - same
    assert len(near) > 30
