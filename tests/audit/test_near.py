"""Near-duplicates, near-contradictions and leaked prompts against comparing each with every other."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simpo_cli.audit import duplicates
from simpo_cli.audit.duplicates import MOST_COMPARED, NUM_BANDS, Leaks, find_leaks, find_near_pairs, read_prompts
from simpo_cli.audit.measures import asked_text, prompt_hash
from simpo_cli.audit.signatures import SIGNATURE_BYTES, Signatures, signatures_of
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import Message, PreferencePair
from tests.audit.test_signatures import WORDS, edited, similarity
from tests.benchmarks import near as bench_near

Texts = tuple[str, str, str]  # prompt, chosen, rejected
NONE = np.empty(0, dtype=np.int64)
SURE, UNLIKE = 0.85, 0.4  # similarities on either side of the lines, but for one case in many thousands


def signed(pairs: Sequence[Texts]) -> Signatures:
    return signatures_of([text for pair in pairs for text in pair]).reshape(-1, 3, SIGNATURE_BYTES)


def text(draw: random.Random, words: int = 60) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def made_pairs(count: int, seed: int) -> list[Texts]:
    """Pairs of which many are copies of earlier ones: with some words changed, swapped, or with one part new."""
    draw = random.Random(seed)
    pairs: list[Texts] = []
    for _ in range(count):
        kind = draw.choice(["new", "near", "near", "far", "swapped", "part"]) if pairs else "new"
        prompt, chosen, rejected = draw.choice(pairs) if pairs else ("", "", "")
        share = draw.choice([0.1, 0.4]) if kind == "far" else 0.01
        parts = [edited(part, share, draw) for part in (prompt, chosen, rejected)]
        if kind == "new":
            parts = [text(draw), text(draw), text(draw)]
        elif kind == "swapped":
            parts[1:] = reversed(parts[1:])
        elif kind == "part":
            parts[draw.randrange(3)] = text(draw)
        pairs.append((parts[0], parts[1], parts[2]))
    return pairs


def test_against_comparing_every_pair_with_every_other() -> None:
    pairs = made_pairs(160, seed=5)
    found = find_near_pairs(signed(pairs), NONE, NONE)
    likeness = np.zeros((len(pairs), len(pairs), 2))  # of the least similar part, as they are and swapped
    for i, (prompt, chosen, rejected) in enumerate(pairs):
        for j, other in enumerate(pairs[:i]):
            same_prompt = similarity(prompt, other[0])
            as_is = min(same_prompt, similarity(chosen, other[1]), similarity(rejected, other[2]))
            swapped = min(same_prompt, similarity(chosen, other[2]), similarity(rejected, other[1]))
            likeness[i, j] = likeness[j, i] = as_is, swapped
    earlier = np.tril(likeness[:, :, 0])
    duplicates = set(found.duplicates.tolist())
    assert set(np.flatnonzero(earlier.max(axis=1) > SURE).tolist()) <= duplicates
    assert duplicates <= set(np.flatnonzero(earlier.max(axis=1) > UNLIKE).tolist())
    assert len(duplicates) > 40
    firsts = np.array([i not in duplicates for i in range(len(pairs))])
    opposed = likeness[:, :, 1] * firsts[:, None] * firsts[None, :]
    contradictions = set(found.contradictions.tolist())
    assert set(np.flatnonzero(opposed.max(axis=1) > SURE).tolist()) <= contradictions
    assert contradictions <= set(np.flatnonzero(likeness[:, :, 1].max(axis=1) > UNLIKE).tolist()) - duplicates
    assert len(contradictions) > 10


def test_what_is_known_already_is_not_said_again() -> None:
    draw = random.Random(1)
    prompt, chosen, rejected = text(draw), text(draw), text(draw)
    first = (prompt, chosen, rejected)
    pairs = [
        first,
        first,
        (prompt.upper(), chosen + "!", rejected),
        (prompt, rejected, chosen),
        (prompt, chosen, chosen),
    ]
    found = find_near_pairs(signed(pairs), repeated=np.array([1]), identical=np.array([4]))
    assert found.duplicates.tolist() == [2]
    assert found.contradictions.tolist() == [0, 3]
    assert found.same_responses.tolist() == []


def test_responses_that_are_nearly_the_same() -> None:
    draw = random.Random(2)
    one, other = text(draw), text(draw)
    pairs = [
        ("p", one, other),
        ("q", one, one + " more"),
        ("r", "Yes.", "yes"),
        ("s", "x = 1", "x = -1"),
        ("t", "", "a"),
    ]
    found = find_near_pairs(signed(pairs), NONE, NONE)
    assert found.same_responses.tolist() == [1, 2]
    # two pairs whose sides are all alike: duplicates, and no contradiction
    found = find_near_pairs(signed([("q", one, one + " more"), ("q", one + " more", one)]), NONE, NONE)
    assert (found.duplicates.tolist(), found.contradictions.tolist()) == ([1], [])


def test_short_prompts_that_differ_in_a_word_are_others() -> None:
    draw = random.Random(4)
    chosen, rejected = text(draw), text(draw)
    pairs = [(f"What is the capital of {land}?", chosen, rejected) for land in ("France", "Spain", "Italy")]
    assert find_near_pairs(signed(pairs), NONE, NONE).duplicates.tolist() == []


@pytest.mark.parametrize("same_words", [True, False])
def test_a_large_group_takes_linear_time(monkeypatch: pytest.MonkeyPatch, same_words: bool) -> None:
    """A thousand copies, or a thousand pairs whose keys are all equal and whose texts are not."""
    draw = random.Random(6)
    count = 1000
    if same_words:
        signatures = np.repeat(signed([(text(draw), text(draw), text(draw))]), count, axis=0)
    else:
        signatures = np.random.default_rng(0).integers(0, 256, (count, 3, SIGNATURE_BYTES), dtype=np.uint8)
        monkeypatch.setattr(duplicates, "_pair_keys", lambda signatures, _: np.zeros(len(signatures), dtype=np.uint64))
    compared = []
    compare = duplicates._compare

    def counted(first: Signatures, second: Signatures) -> Any:
        compared.append(len(second))
        return compare(first, second)

    monkeypatch.setattr(duplicates, "_compare", counted)
    found = find_near_pairs(signatures, NONE, NONE)
    assert found.duplicates.tolist() == (list(range(1, count)) if same_words else [])
    assert sum(compared) <= (count if same_words else count * NUM_BANDS * MOST_COMPARED)


@pytest.mark.parametrize("spaced", [True, False])
def test_one_changed_word_in_twenty_is_found_and_one_in_ten_is_not(spaced: bool) -> None:
    """The rule in docs/stats.md, whose curve comes from `python -m tests.benchmarks.near`."""
    pairs = bench_near.made(150, seed=7, spaced=spaced)
    shares = {every: bench_near.found_share(pairs, every, 7, spaced) for every in (10, 20, 30)}
    assert shares[10] < 0.05
    assert shares[20] > 0.8
    assert shares[30] > 0.95


def test_another_word_in_a_short_prompt_makes_another_pair() -> None:
    shares = {length: bench_near.one_word_share(150, length, seed=7) for length in (6, 8, 30)}
    assert shares[6] == 0
    assert shares[8] < 0.05
    assert shares[30] > 0.95  # one word in thirty


def test_no_pairs() -> None:
    found = find_near_pairs(np.empty((0, 3, SIGNATURE_BYTES), dtype=np.uint8), NONE, NONE)
    assert (len(found.duplicates), len(found.contradictions), len(found.same_responses)) == (0, 0, 0)


# Prompts of the evaluation data

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


def test_prompts_that_are_the_same_near_and_new(tmp_path: Path) -> None:
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


def test_prompts_against_comparing_each_with_each(tmp_path: Path) -> None:
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
