"""Counts in answers against counts by hand and by other code."""

import random
from itertools import pairwise

import numpy as np
import pytest

from simpo_cli.evaluate.generate.measures import (
    Answer,
    distinct,
    is_refusal,
    mean_ratio,
    measure_answers,
    repeated_share,
)


def test_repeated_grams() -> None:
    assert repeated_share([1, 2, 3]) == 0.0
    assert repeated_share([1, 2, 3, 4, 5]) == 0.0
    assert repeated_share([7] * 8) == pytest.approx(4 / 5)  # five grams, one of them different
    assert repeated_share([1, 2, 3, 4, 9, 1, 2, 3, 4]) == pytest.approx(1 / 6)


def test_distinct_grams() -> None:
    answers = [[1, 2, 1], [1, 2, 3]]
    assert distinct(answers, 1) == pytest.approx(3 / 6)
    assert distinct(answers, 2) == pytest.approx(3 / 4)
    assert distinct([[1], []], 2) is None
    draw = random.Random(1)
    texts = [[draw.randrange(9) for _ in range(30)] for _ in range(20)]
    pairs = [pair for text in texts for pair in pairwise(text)]
    assert distinct(texts, 2) == len(set(pairs)) / len(pairs)


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, but I cannot assist you with this request.", True),
        ("I am unable to provide that.", True),
        ("As an AI language model, I cannot give medical advice.", True),
        ("Sorry, I can't do that.", True),
        ("I must decline.", True),
        ("I won't help you build that.", True),
        ("I'm sorry to hear that your page is gone. Open Trash and press Restore.", False),
        ("Open Settings. If you cannot help it, call us.", False),
        ("You can't invite people without a seat.", False),
        ("As an AI assistant, I would look at the logs first.", False),
        ("", False),
        ("First do this. " * 20 + "I'm sorry, but I can't help with that.", False),
    ],
)
def test_refusals(text: str, refuses: bool) -> None:
    assert is_refusal(text) == refuses


def test_the_interval_of_a_ratio_covers_at_its_rate() -> None:
    """A simulation with a known ratio of 1.3: correlated lengths of 60 prompts."""
    draw = np.random.default_rng(2)
    covered = 0
    for _ in range(600):
        base = draw.gamma(4, 25, 60)
        trained = base * 0.9 + draw.gamma(4, 10, 60)
        ratio = mean_ratio(trained.tolist(), base.tolist())
        assert ratio is not None
        assert ratio.value == pytest.approx(trained.mean() / base.mean())
        covered += ratio.low <= 1.3 <= ratio.high
    assert 0.92 <= covered / 600 <= 0.975
    assert mean_ratio([1.0], [0.0]) is None


def test_the_document_of_two_models() -> None:
    base = [Answer("a", "one two", (1, 2), True), Answer("b", "I'm sorry, I can't.", (5, 5, 5, 5, 5, 5), False)]
    trained = [Answer("a", "one two", (1, 2), True), Answer("b", "Do this", (3, 4, 5, 6), True)]
    document = measure_answers(base, trained)
    assert document["tokens"]["base"]["value"] == 4
    assert document["tokens"]["ratio"]["value"] == pytest.approx(3 / 4)
    assert document["no_end"]["base"]["value"] == 0.5
    assert document["no_end"]["difference"]["value"] == -0.5
    assert document["refusals"]["trained"]["value"] == 0
    assert document["repeated_4_grams"]["base"]["value"] == pytest.approx((2 / 3) / 2)
    assert document["same_answers"] == 1
    # of as many tokens as both have: (1, 2) and (5, 5, 5, 5) against (1, 2) and (3, 4, 5, 6)
    assert document["distinct_1"] == {"base": 3 / 6, "trained": 1.0}


def test_the_longer_model_is_not_called_less_varied_for_its_length() -> None:
    draw = random.Random(3)
    words = [draw.randrange(50) for _ in range(4000)]
    short = [Answer(str(i), "", tuple(words[40 * i : 40 * i + 20]), True) for i in range(50)]
    long = [Answer(str(i), "", tuple(words[40 * i : 40 * i + 40]), True) for i in range(50)]
    document = measure_answers(short, long)
    assert document["distinct_2"]["base"] == document["distinct_2"]["trained"]


def test_answers_to_other_prompts_are_our_mistake() -> None:
    with pytest.raises(AssertionError):
        measure_answers([Answer("a", "", (), True)], [Answer("b", "", (), True)])
