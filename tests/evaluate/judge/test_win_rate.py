"""Win rates on simulated judges whose liking for length is known."""

import numpy as np
import pytest
from scipy.optimize import minimize

from simpo_cli.evaluate.judge import length_controlled
from simpo_cli.statistics import proportion


def judged(
    draw: np.random.Generator, *, quality: float, bias: float, prompts: int = 100, agree: float = 0.6
) -> tuple[list[float], list[float], list[str]]:
    """Verdicts of a judge: sigmoid(quality + bias * tanh(difference / spread)), the trained answers longer by far.

    Both orders of a prompt give the same verdict with probability `agree`, and else one of their own.
    """
    longer = np.round(draw.normal(150, 200, prompts))
    chances = 1 / (1 + np.exp(-(quality + bias * np.tanh(longer / longer.std(ddof=1)))))
    first = draw.random(prompts) < chances
    second = np.where(draw.random(prompts) < agree, first, draw.random(prompts) < chances)
    names = [str(i) for i in range(prompts)]
    return np.concatenate([first, second]).astype(float).tolist(), [*longer, *longer], [*names, *names]


def test_a_judge_that_goes_by_length_inflates_the_raw_win_rate_only() -> None:
    raw, controlled, covered, seen = [], [], 0, 300
    draw = np.random.default_rng(1)
    for _ in range(seen):
        scores, longer, prompts = judged(draw, quality=0.0, bias=1.5)
        raw.append(proportion(scores, prompts).value)
        result = length_controlled(scores, longer, prompts)
        assert result is not None
        controlled.append(result.win_rate.value)
        covered += result.win_rate.low <= 0.5 <= result.win_rate.high
    assert np.mean(raw) > 0.62
    assert np.mean(controlled) == pytest.approx(0.5, abs=0.01)
    assert 0.92 <= covered / seen <= 0.98


def test_a_better_model_stays_better() -> None:
    draw = np.random.default_rng(2)
    results = [length_controlled(*judged(draw, quality=0.8, bias=1.0, prompts=200)) for _ in range(100)]
    wanted = 1 / (1 + np.exp(-0.8))
    assert np.mean([result.win_rate.value for result in results if result]) == pytest.approx(wanted, abs=0.01)
    assert np.mean([result.length_effect.value for result in results if result]) == pytest.approx(1.0, abs=0.1)
    assert sum(result.win_rate.low <= wanted <= result.win_rate.high for result in results if result) >= 89


def test_the_fit_is_the_top_of_the_penalised_likelihood() -> None:
    scores, longer, prompts = judged(np.random.default_rng(3), quality=0.4, bias=-0.7)
    scores[:20] = [0.5] * 20
    spread = np.std(longer[:100], ddof=1)

    def loss(weights: np.ndarray) -> float:
        return 0.5 * float((weights**2).sum()) / 25 + sum(
            float(score * np.log1p(np.exp(-z)) + (1 - score) * np.log1p(np.exp(z)))
            for score, z in zip(scores, weights[0] + weights[1] * np.tanh(np.array(longer) / spread), strict=True)
        )

    theta, phi = minimize(loss, [0.0, 0.0], tol=1e-12).x
    result = length_controlled(scores, longer, prompts)
    assert result is not None
    assert result.win_rate.value == pytest.approx(1 / (1 + np.exp(-theta)), abs=1e-5)
    assert result.length_effect.value == pytest.approx(phi, abs=1e-4)


def test_a_judge_that_always_says_the_same_gives_numbers() -> None:
    prompts = [str(i) for i in range(12)] * 2
    longer = [float(i) for i in range(12)] * 2
    always = length_controlled([1.0] * 24, longer, prompts)
    assert always is not None
    assert 0.9 < always.win_rate.value < 1
    assert always.win_rate.low < 0.9, "twelve prompts cannot say more"
    by_length = length_controlled([float(gap > 5.5) for gap in longer], [gap - 5.5 for gap in longer], prompts)
    assert by_length is not None
    assert by_length.win_rate.value == pytest.approx(0.5, abs=0.01)
    assert np.isfinite([by_length.win_rate.low, by_length.win_rate.high, by_length.length_effect.value]).all()


def test_where_length_cannot_be_controlled() -> None:
    assert length_controlled([1.0] * 18, [1.0, 2.0, 3.0] * 6, [str(i % 9) for i in range(18)]) is None
    assert length_controlled([1.0] * 20, [5.0] * 20, [str(i % 10) for i in range(20)]) is None


def test_both_orders_of_a_prompt_are_one_sample() -> None:
    scores = [1.0, 0.0] * 15
    doubled = proportion(scores * 2, [str(i) for i in range(30)] * 2)
    single = proportion(scores, [str(i) for i in range(30)])
    assert doubled.high - doubled.low == pytest.approx(single.high - single.low, rel=0.08)
