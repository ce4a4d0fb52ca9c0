"""The surface-only classifier against scipy's own minimiser, and against what it must not know."""

import numpy as np
import pytest
from scipy.optimize import minimize

from simpo_cli.audit.measures import FEATURES, surface_differences
from simpo_cli.audit.surface import fit, judge, leading


def drawn(count: int, *, seed: int, lean: float) -> np.ndarray:
    """Differences that lean towards the chosen side."""
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(count, len(FEATURES))) + lean * (np.arange(len(FEATURES)) % 3 == 0)).astype(np.float32)


@pytest.mark.parametrize("lean", [0.0, 0.3, 3.0])
def test_the_fit_is_that_of_a_general_minimiser(lean: float) -> None:
    rows = drawn(300, seed=4, lean=lean)
    fitted = fit(rows)
    scaled = rows / np.sqrt((rows.astype(np.float64) ** 2).mean(axis=0))

    def objective(weights: np.ndarray) -> float:
        return float(sum(np.log1p(np.exp(-margin)) for margin in scaled @ weights) + (weights @ weights) / 2)

    reference = minimize(objective, np.zeros(len(FEATURES)), method="BFGS", options={"gtol": 1e-7})
    assert fitted.weights == pytest.approx(reference.x, abs=2e-4)
    assert fitted.margins(rows) == pytest.approx(scaled @ reference.x, abs=2e-2)


def test_a_feature_that_tells_everything_stays_finite() -> None:
    rows = np.zeros((2000, len(FEATURES)), dtype=np.float32)
    rows[:, 0] = 5.0
    fitted = fit(rows)
    assert np.isfinite(fitted.weights).all()
    assert (fitted.margins(rows) > 0).all()


def test_swapping_the_sides_swaps_the_answer() -> None:
    pairs = [("a, " * n + ".", "b?\n" * (n % 3)) for n in range(20)]
    there, back = surface_differences(pairs), surface_differences((rejected, chosen) for chosen, rejected in pairs)
    assert there == pytest.approx(-back)
    fitted = fit(there)
    assert fitted.margins(back) == pytest.approx(-fitted.margins(there))
    assert fit(back).weights == pytest.approx(-fitted.weights)


def test_without_a_difference_it_is_a_tie() -> None:
    rows = np.zeros((40, len(FEATURES)), dtype=np.float32)
    result = judge(rows, np.arange(40, dtype=np.uint64))
    assert result is not None
    assert (result.accuracy.value, result.ties) == (0.5, 40)


def test_what_can_be_told_is_told_and_noise_is_not() -> None:
    prompts = np.arange(2000, dtype=np.uint64)
    told = judge(drawn(2000, seed=1, lean=1.0), prompts)
    noise = judge(drawn(2000, seed=2, lean=0.0), prompts)
    assert told is not None
    assert noise is not None
    assert told.accuracy.low > 0.9
    assert noise.accuracy.low < 0.5 < noise.accuracy.high
    assert told == judge(drawn(2000, seed=1, lean=1.0), prompts)


def test_a_prompt_is_never_on_both_sides() -> None:
    """A feature of its own a prompt tells its label: whoever saw the prompt would always be right."""
    draw = np.random.default_rng(3)
    rows = np.zeros((200, len(FEATURES)), dtype=np.float32)
    prompts = np.repeat(np.arange(10, dtype=np.uint64), 20)
    for prompt in range(10):
        rows[prompts == prompt, prompt] = draw.choice([-1.0, 1.0])
    result = judge(rows, prompts)
    assert result is not None
    assert result.accuracy.value == 0.5  # nothing of the other prompts says anything about this one
    assert result.accuracy.n == 200


def test_few_prompts_are_not_judged() -> None:
    assert judge(drawn(100, seed=1, lean=1.0), np.zeros(100, dtype=np.uint64)) is None
    assert judge(drawn(9, seed=1, lean=1.0), np.arange(9, dtype=np.uint64)) is None


def test_only_what_weighs_leads() -> None:
    weights = {"a": 0.01, "b": -2.0, "c": 1.0, "d": 0.0, "e": 0.5}
    assert leading(weights, most=2) == [("b", -2.0), ("c", 1.0)]
    assert leading(weights, most=5) == [("b", -2.0), ("c", 1.0), ("e", 0.5)]
    assert leading({"a": 0.0}, most=3) == []
