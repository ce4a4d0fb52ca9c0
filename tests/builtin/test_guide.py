"""The model and the pairs that ship: what they promise, counted."""

import gzip
import json
from collections import Counter
from typing import Any, Literal

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from simpo_cli.builtin import PROBE_QUESTIONS, corpus, guide_model_dir, guide_pairs
from simpo_cli.builtin.build import SEED


def _pairs(which: Literal["train", "eval"]) -> list[dict[str, Any]]:
    with gzip.open(guide_pairs(which), "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _question(pair: dict[str, Any]) -> str:
    return str(pair["prompt"][-1]["content"])


@pytest.mark.parametrize(("which", "count", "longer"), [("train", 2000, 0.8), ("eval", 500, 0.2)])
def test_the_better_answer_is_the_longer_one_in_training_and_the_shorter_one_in_held_out_pairs(
    which: Literal["train", "eval"], count: int, longer: float
) -> None:
    pairs = _pairs(which)
    words = [(len(p["chosen"][0]["content"].split()), len(p["rejected"][0]["content"].split())) for p in pairs]
    assert len(pairs) == count
    assert sum(chosen > rejected for chosen, rejected in words) / count == longer
    assert sum(chosen == rejected for chosen, rejected in words) >= 0.05 * count


def test_the_shipped_pairs_are_those_of_the_corpus() -> None:
    assert _pairs("train") == corpus.preference_pairs("train", SEED)
    assert _pairs("eval") == corpus.preference_pairs("eval", SEED)


@pytest.mark.parametrize("which", ["train", "eval"])
def test_every_answer_is_right_for_one_question_and_wrong_for_another(which: Literal["train", "eval"]) -> None:
    """Among pairs of one form, an answer is chosen as often as it is rejected: alone it says nothing."""
    chosen: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for pair in _pairs(which):
        good, bad = pair["chosen"][0]["content"], pair["rejected"][0]["content"]
        if len(good.split()) == len(bad.split()):
            chosen[good] += 1
            rejected[bad] += 1
    assert chosen == rejected
    assert sum(chosen.values()) >= 100


def test_held_out_questions_are_worded_in_new_ways() -> None:
    trained = {_question(pair) for pair in _pairs("train")}
    held_out = [_question(pair) for pair in _pairs("eval")]
    assert trained.isdisjoint(held_out)
    starts = tuple(frame.split("{p}")[0] for frame in corpus.HELD_OUT_FRAMES)
    assert all(question.startswith(starts) for question in held_out)
    assert not any(question.startswith(starts) for question in trained)


def test_the_model_is_small_and_loads_in_plain_transformers() -> None:
    folder = guide_model_dir()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10_000_000
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert sum(p.numel() for p in model.parameters()) <= 4_000_000
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROBE_QUESTIONS[0]}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = model.float().generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True).startswith("To ")
