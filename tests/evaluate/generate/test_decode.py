"""Answers in batches against one prompt at a time, without cache, padding or the library's loop."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import GenerationConfig

from simpo_cli import stages
from simpo_cli.evaluate.generate import decode
from simpo_cli.evaluate.generate.decode import (
    Decoding,
    InverseDraw,
    KeptCache,
    answer_batch,
    answers_of,
    generate_ids,
    open_for_answers,
    rows_that_fit,
    uniforms,
)
from simpo_cli.evaluate.generate.folder import MODES, Mode
from simpo_cli.evaluate.generate.prompts import Question
from simpo_cli.model.source import find_model
from tests.evaluate.generate.questions import random_questions
from tests.tiny import save_tiny_model, tiny_config, tiny_model

DECODING = Decoding(max_new_tokens=12, temperature=0.8, seed=3, end_ids=tuple(range(3, 33)), to_text=str)


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen3"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    made = tiny_model(request.param, seed=4).double()
    made.generation_config = GenerationConfig()
    return made


def alone(model: torch.nn.Module, question: Question, numbers: np.ndarray | None) -> tuple[list[int], bool]:
    """One answer by whole forward passes over one row; with numbers, drawn by walking up the probabilities."""
    ids = list(question.ids)
    for step in range(DECODING.max_new_tokens):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        if numbers is None:
            token = int(logits.argmax())
        else:
            chances = torch.softmax(logits / DECODING.temperature, -1).tolist()
            token, reached = 0, chances[0]
            while numbers[step] >= reached:
                token += 1
                reached += chances[token]
        if token in DECODING.end_ids:
            return ids[len(question.ids) :], True
        ids.append(token)
    return ids[len(question.ids) :], False


def test_whoever_watches_sees_the_tokens_come(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    shown = stages.Stage.advance
    monkeypatch.setattr(stages.Stage, "advance", lambda one: (shown(one), seen.append(stages.in_words()))[0])
    answers = answer_batch(model, random_questions(3, seed=8), DECODING, "greedy")
    assert len(seen) >= max(len(answer.ids) for answer in answers)
    assert seen[0].startswith("greedy answers to 3 prompts: generating tokens, 1 of 12, ")


@pytest.mark.parametrize("mode", MODES)
def test_answers_of_a_batch_are_those_of_each_prompt_alone(model: torch.nn.Module, mode: Mode) -> None:
    questions = random_questions(5, seed=1)
    ended = set()
    for question, answer in zip(questions, answer_batch(model, questions, DECODING, mode), strict=True):
        numbers = uniforms(question.key, DECODING) if mode == "sampled" else None
        assert (list(answer.ids), answer.ended) == alone(model, question, numbers)
        assert answer.key == question.key
        ended.add(answer.ended)
    if mode == "sampled":
        assert ended == {True, False}, "the test is to see answers that end and answers that are cut"


def test_sampled_answers_do_not_depend_on_what_else_is_asked(model: torch.nn.Module) -> None:
    questions = random_questions(6, seed=2)
    together = {one.key: one for one in answer_batch(model, questions, DECODING, "sampled")}
    apart = [answer_batch(model, [question], DECODING, "sampled")[0] for question in questions]
    backwards = answer_batch(model, questions[::-1], DECODING, "sampled")
    assert apart == [together[question.key] for question in questions] == backwards[::-1]
    other = answer_batch(model, questions, replace(DECODING, seed=4), "sampled")
    assert [one.ids for one in other] != [one.ids for one in apart]


def test_draws_follow_the_distribution() -> None:
    """A chi-square test of 4,000 draws against the softmax, computed in plain numbers."""
    scores = torch.tensor([0.0, 1.0, -1.0, 2.0, -torch.inf])
    draws = Counter[int]()
    for i in range(4000):
        numbers = torch.from_numpy(uniforms(f"{i:x}", DECODING))[None]
        chosen = InverseDraw(numbers, 0.8, prompt_length=3)(torch.zeros(1, 3 + i % 12), scores[None])
        draws[int(chosen.argmax())] += 1
    weights = np.exp(np.array([0.0, 1.0, -1.0, 2.0]) / 0.8)
    assert draws[4] == 0
    assert stats.chisquare([draws[i] for i in range(4)], 4000 * weights / weights.sum()).pvalue > 1e-3


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (0.4999999, 1), (0.5, 3), (1 - 1e-16, 3)])
def test_a_token_of_no_probability_is_never_drawn(number: float, token: int) -> None:
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    chosen = InverseDraw(torch.tensor([[number]], dtype=torch.float64), 1.0, 2)(torch.zeros(1, 2), scores)
    assert int(chosen.argmax()) == token


def test_the_sampling_that_a_model_suggests_is_put_aside(tmp_path: Path) -> None:
    """A repetition penalty in generation_config.json would otherwise change the greedy answers too."""
    questions = random_questions(5, seed=5)
    answers = []
    for name, suggested in (("plain", {}), ("penal", {"repetition_penalty": 5.0, "min_new_tokens": 12})):
        folder = save_tiny_model(tmp_path / name)
        GenerationConfig(**suggested).save_pretrained(folder)
        answers.append(list(answers_of(find_model(str(folder)), {"greedy": questions, "sampled": questions}, DECODING)))
    assert answers[0] == answers[1]
    assert {mode for mode, _ in answers[0]} == {"greedy", "sampled"}


def test_the_saved_model_is_what_answers(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "bf16", dtype=torch.bfloat16)
    opened = open_for_answers(find_model(str(tmp_path / "bf16")))
    kept = torch.bfloat16 if decode.multiplies_in_bf16("cpu") else torch.float32
    assert {parameter.dtype for parameter in opened.parameters()} == {kept}
    assert not opened.training


def test_no_more_rows_than_the_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = random_questions(3, seed=6)
    longest = max(len(question.ids) for question in questions) + DECODING.max_new_tokens
    row_bytes = 2 * 2 * 2 * 8 * 4 * longest  # keys and values, layers, heads, their size, float32
    for rows, free in ((1, 0), (1, 2 * row_bytes), (5, 11 * row_bytes), (32, 10**9)):
        monkeypatch.setattr(decode, "available_bytes", lambda _device, free=free: free)
        assert rows_that_fit(tiny_config(), torch.device("cpu"), questions, DECODING, torch.float32) == rows


@pytest.mark.parametrize(
    ("model_type", "changes", "is_kept"),
    [
        ("llama", {}, True),
        ("gpt2", {}, True),
        ("gemma3_text", {"sliding_window": 8}, False),  # its layers forget, and what they forgot does not come back
        ("mistral", {"sliding_window": 8}, False),
        ("mamba", {"state_size": 4}, False),
    ],
)
def test_what_is_kept_of_a_conversation_changes_no_token(
    model_type: str, changes: dict[str, int], is_kept: bool
) -> None:
    made = tiny_model(model_type, seed=4, **changes).double()
    made.generation_config = GenerationConfig()
    kept, device, begun = KeptCache(), torch.device("cpu"), list(range(40, 60))
    followed = generate_ids(made, [begun], device, 6, [])[0]
    computed: list[int] = []
    made.register_forward_pre_hook(lambda _, __, given: computed.append(given["input_ids"].shape[1]), with_kwargs=True)
    conversation = [
        (begun, 20),
        ([*begun, *followed, 70, 71], 3),  # what follows the last answer, whose last token was never read
        ([*begun, *followed, 70, 71], 1),  # another answer to the same
        ([*begun, *followed[:3], 72], 1),  # another turn in place of a part
        ([41, *begun], 21),  # something else
        ([41], 1),
    ]
    for prompt, num_new in conversation:
        computed.clear()
        tokens: list[int] = []
        with torch.inference_mode():
            rows = generate_ids(made, [prompt], device, 6, [], on_tokens=tokens.extend, kept=kept)
        assert computed[0] == (num_new if is_kept else len(prompt))
        with torch.no_grad():
            for count, token in enumerate(tokens):
                assert int(made(input_ids=torch.tensor([[*prompt, *tokens[:count]]])).logits[0, -1].argmax()) == token
        assert rows == [tokens]
        assert len(tokens) == 6
