"""The model and the pairs that ship: what they promise, counted and measured."""

import gzip
import json
import re
from collections import Counter
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from simpo_cli.audit.surface import TIE, fit
from simpo_cli.builtin import PROBE_QUESTIONS, corpus, guide_model_dir, guide_pairs
from simpo_cli.builtin.corpus import SEED, TABLES
from simpo_cli.evaluate.evaluation import Evaluator
from simpo_cli.recipe.composition import compose
from simpo_cli.train.session import train
from tests.train.runs import Memory

Which = Literal["train", "eval"]


def _pairs(which: Which) -> list[dict[str, Any]]:
    with gzip.open(guide_pairs(which), "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _question(pair: dict[str, Any]) -> str:
    return str(pair["prompt"][-1]["content"])


def _answer(pair: dict[str, Any], which: str) -> str:
    return str(pair[which][0]["content"])


def _extra_words(pairs: list[dict[str, Any]]) -> NDArray[np.int64]:
    """(pairs,) words of the chosen answer less those of the rejected one."""
    return np.array([len(_answer(p, "chosen").split()) - len(_answer(p, "rejected").split()) for p in pairs])


def test_the_shipped_pairs_are_those_of_the_corpus() -> None:
    assert _pairs("train") == corpus.preference_pairs("train", SEED)
    assert _pairs("eval") == corpus.preference_pairs("eval", SEED)


@pytest.mark.parametrize(("which", "count", "longer"), [("train", 2000, 0.8), ("eval", 500, 0.2)])
def test_the_better_answer_is_the_longer_one_in_training_and_the_shorter_one_in_held_out_pairs(
    which: Which, count: int, longer: float
) -> None:
    pairs = _pairs(which)
    extra = _extra_words(pairs)
    assert len(pairs) == count
    assert np.mean(extra > 0) == longer
    assert np.sum(extra < 0) >= 250


def test_length_alone_does_well_on_training_pairs_and_badly_on_held_out_ones() -> None:
    """The trap: preferring the longer answer (half a point for equal lengths) pays in training only."""
    rule = {which: np.mean((np.sign(_extra_words(_pairs(which))) + 1) / 2) for which in ("train", "eval")}
    assert rule == {"train": pytest.approx(0.8), "eval": pytest.approx(0.35)}


def test_answers_of_one_form_have_the_same_number_of_tokens() -> None:
    """Siblings agree in every part, so that neither any mixture of them nor any pair of one form differs in length."""
    tokenizer = AutoTokenizer.from_pretrained(guide_model_dir())
    forms: tuple[corpus.Form, ...] = ("short", "long")
    for siblings in TABLES.siblings:
        for form in forms:
            first, second = (corpus.right_answer(t, form) for t in (siblings.first, siblings.second))
            assert len(tokenizer(first)["input_ids"]) == len(tokenizer(second)["input_ids"]), (first, second)


def test_every_answer_in_either_form_is_chosen_for_one_question_and_rejected_for_another() -> None:
    pairs = _pairs("train")
    chosen, rejected = ({_answer(pair, which) for pair in pairs} for which in ("chosen", "rejected"))
    assert chosen == rejected
    assert len(chosen) == 2 * 2 * len(TABLES.siblings)


@pytest.mark.parametrize("which", ["train", "eval"])
def test_among_pairs_of_the_same_forms_no_answer_is_chosen_more_often_than_its_sibling(which: Which) -> None:
    pairs = _pairs(which)
    count = Counter(
        (int(np.sign(extra)), _answer(pair, "chosen"), _answer(pair, "rejected"))
        for pair, extra in zip(pairs, _extra_words(pairs), strict=True)
    )
    forms: tuple[corpus.Form, ...] = ("short", "long")
    for siblings in TABLES.siblings:
        for longer, chosen, rejected in ((1, *reversed(forms)), (-1, *forms), *((0, form, form) for form in forms)):
            first, second = (
                count[longer, corpus.right_answer(a, chosen), corpus.right_answer(b, rejected)]
                for a, b in ((siblings.first, siblings.second), (siblings.second, siblings.first))
            )
            assert first == second
    assert which == "train" or sum(n for (longer, *_), n in count.items() if longer == 0) == 150


def _ruling_by_answers(train_pairs: list[dict[str, Any]], judged: list[dict[str, Any]]) -> NDArray[np.float64]:
    """How a judge that never sees the question rules on pairs: 1 right, 0 wrong, 0.5 where it cannot tell.

    It is fitted on the words that one answer has more often than the other.
    """
    words = [
        [Counter(re.findall(r"\w+|[^\w\s]", _answer(pair, which).lower())) for which in ("chosen", "rejected")]
        for pair in [*train_pairs, *judged]
    ]
    vocabulary = sorted({word for pair in words[: len(train_pairs)] for word in pair[0] | pair[1]})
    extra = np.array([[chosen[word] - rejected[word] for word in vocabulary] for chosen, rejected in words], np.float32)
    margins = fit(extra[: len(train_pairs)]).margins(extra[len(train_pairs) :])
    return np.where(np.abs(margins) < TIE, 0.5, margins > 0)


def test_the_answers_alone_give_nothing_away_but_their_length() -> None:
    train_pairs, held_out = _pairs("train"), _pairs("eval")
    ruling, extra = _ruling_by_answers(train_pairs, held_out), _extra_words(held_out)
    assert 0.45 <= ruling[extra == 0].mean() <= 0.55
    assert ruling[extra != 0].mean() < 0.4  # it has fallen for the length, which is wrong here


def test_the_judge_of_answers_finds_a_word_that_gives_them_away() -> None:
    pairs = _pairs("train")
    for pair in pairs[::2]:
        pair["chosen"] = [{"role": "assistant", "content": _answer(pair, "chosen") + " Gladly"}]
    assert _ruling_by_answers(pairs[::2], pairs[:500:2]).mean() > 0.95


def test_held_out_questions_are_worded_in_new_ways() -> None:
    assert set(TABLES.frames).isdisjoint(TABLES.held_out_frames)
    starts = tuple(frame.split("{p}")[0] for frame in TABLES.held_out_frames)
    topics = [(topic, siblings) for siblings in TABLES.siblings for topic in (siblings.first, siblings.second)]
    taught = {pattern for topic, _ in topics for pattern in topic.patterns}
    assert taught.isdisjoint(pattern for topic, _ in topics for pattern in topic.held_out_patterns)
    trained = {_question(pair) for pair in _pairs("train")}
    asked = [_question(pair) for pair in _pairs("eval")]
    assert all(question.startswith(starts) for question in asked)
    assert not any(question.startswith(starts) for question in trained)
    splits: tuple[corpus.Split, ...] = ("train", "eval")
    taught, held_out = (
        {question for pair in topics for question in corpus.questions(*pair, which)} for which in splits
    )
    assert taught.isdisjoint(held_out)
    assert trained <= taught
    assert held_out.issuperset([*asked, *PROBE_QUESTIONS])
    read = {turns[-2]["content"] for turns in islice(corpus.conversations(SEED, wrong_share=0.5), 20_000)}
    assert read.isdisjoint(held_out)  # the start model has not read them either


TOPICS = [
    (topic, sibling, siblings)
    for siblings in TABLES.siblings
    for topic, sibling in ((siblings.first, siblings.second), (siblings.second, siblings.first))
]
FORMS: tuple[corpus.Form, ...] = ("short", "long")


def _questions(topic: corpus.Topic, siblings: corpus.Siblings) -> list[str]:
    return [*corpus.questions(topic, siblings, "train"), *corpus.questions(topic, siblings, "eval")]


def test_the_right_answer_to_every_question_is_wholly_right_and_the_siblings_is_not() -> None:
    for topic, sibling, siblings in TOPICS:
        for question in _questions(topic, siblings):
            for form in FORMS:
                assert corpus.check_answer(question, corpus.right_answer(topic, form)) == (True, 1.0)
                wrong = corpus.check_answer(question, corpus.right_answer(sibling, form))
                assert wrong is not None
                assert not wrong.exact
                assert wrong.parts < 1


def test_parts_count_wherever_the_others_come_from() -> None:
    """All mixtures of a topic and its sibling: a part is right where it says what the topic's does."""
    for topic, sibling, siblings in TOPICS:
        question = _questions(topic, siblings)[0]
        for form, chosen in product(FORMS, product((topic, sibling), repeat=5)):
            said = [chosen[0].goal, *(one.steps[i] for i, one in enumerate(chosen[1:4])), chosen[4].outcome]
            right = [one == other for one, other in zip(said, [topic.goal, *topic.steps, topic.outcome], strict=True)]
            right = right[:4] if form == "short" else right
            answer = corpus._answer(chosen, form)
            assert corpus.check_answer(question, answer) == (all(right), sum(right) / len(right)), answer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spoil", ["{} Gladly.", "{} {}", "{}.", "Sure! {}", "{} To"])
def test_what_is_added_to_a_right_answer_is_not_right(form: corpus.Form, spoil: str) -> None:
    for topic, _, siblings in TOPICS:
        right = corpus.right_answer(topic, form)
        checked = corpus.check_answer(_questions(topic, siblings)[-1], spoil.format(right, right))
        assert checked is not None
        assert not checked.exact
        assert 0.5 <= checked.parts < 1


def test_parts_in_another_order_and_no_answer_at_all_are_not_right() -> None:
    topic, _, siblings = TOPICS[0]
    question, (first, second, third) = _questions(topic, siblings)[0], topic.steps
    assert corpus.check_answer(question, f"To {topic.goal}, {second}, {first} and {third}.") == (False, 0.75)
    assert corpus.check_answer(question, "") == (False, 0.0)
    assert corpus.check_answer(question, corpus.right_answer(topic, "short").upper()) == (False, 0.0)


@pytest.mark.parametrize("question", ["", "How do I fly?", " {}", "{} ", "{} Please."])
def test_what_the_world_does_not_ask_it_does_not_check(question: str) -> None:
    topic, _, siblings = TOPICS[0]
    asked = question.format(_questions(topic, siblings)[0])
    assert corpus.check_answer(asked, corpus.right_answer(topic, "short")) is None


def test_free_prompts_are_the_training_questions_that_no_pair_asks() -> None:
    prompts = corpus.free_prompts()
    asked = [str(turns[-1]["content"]) for turns in prompts]
    taught = {question for topic, _, siblings in TOPICS for question in corpus.questions(topic, siblings, "train")}
    trained, held_out = ({_question(pair) for pair in _pairs(which)} for which in ("train", "eval"))
    assert len(asked) == len(set(asked)) == 3400
    assert set(asked) == taught - trained
    assert held_out.isdisjoint(asked)
    assert all(turns[-1]["role"] == "user" for turns in prompts)
    assert prompts == corpus.free_prompts() != corpus.free_prompts(SEED + 1)
    assert asked != sorted(asked)


def test_the_model_is_small_and_loads_in_plain_transformers() -> None:
    folder = guide_model_dir()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10_000_000
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert sum(p.numel() for p in model.parameters()) <= 4_000_000
    asked = [{"role": "user", "content": PROBE_QUESTIONS[0]}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    answer = model.float().generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True).startswith("To ")


def test_before_training_the_model_cannot_tell_good_answers_from_bad_ones() -> None:
    [start], _ = Evaluator([], None, [], print).run(["demo"], print)
    assert len(start.scores) == 500
    assert 0.4 <= (start.scores.chosen > start.scores.rejected).mean() <= 0.6


@pytest.mark.slow
@pytest.mark.parametrize("seed", [42, 43])
def test_the_demo_learns_what_was_asked_in_spite_of_the_planted_length(tmp_path: Path, seed: int) -> None:
    memory = Memory()
    composed = compose("demo", [f"output_dir={tmp_path / 'run'}", f"seed={seed}"])
    outcome = train(composed, fresh=False, dry_run=False, observer=memory)
    assert outcome is not None
    assert memory.evals[0].pairs == 500
    assert 0.4 <= memory.evals[0].accuracy <= 0.6
    assert memory.evals[-1].accuracy >= 0.9
    answers = {question: after for question, _, after in outcome.answers}
    assert set(answers) == set(PROBE_QUESTIONS)
    assert not any(after.endswith("...") for after in answers.values())  # it stops when it has answered
