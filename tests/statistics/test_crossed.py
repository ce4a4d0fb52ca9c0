"""Two arms over the same prompts and seeds: by hand, in the limits, and how often equal ones are told apart."""

import numpy as np
import pytest
from scipy import stats

from simpo_cli.statistics import crossed_difference, mean


def test_by_hand_of_two_seeds_and_three_prompts() -> None:
    first = np.zeros((2, 3))
    second = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 7.0]])
    found = crossed_difference(first, second)
    # means 3; prompts 1.5, 2.5, 5; seeds 2, 4; rest: +-1/3 ... from the two-way table
    of_prompts = 2 * ((1.5 - 3) ** 2 + (2.5 - 3) ** 2 + (5 - 3) ** 2) / 2
    of_seeds = 3 * (1 + 1) / 1
    rest = np.array([[1 - 1.5 + 1, 2 - 2.5 + 1, 3 - 5 + 1], [2 - 1.5 - 1, 3 - 2.5 - 1, 7 - 5 - 1]])
    of_rest = (rest**2).sum() / 2
    spread = of_prompts + of_seeds - of_rest
    degrees = spread**2 / (of_prompts**2 / 2 + of_seeds**2 / 1 + of_rest**2 / 2)
    error = np.sqrt(spread / 6)
    half = stats.t.ppf(0.975, degrees) * error
    assert found.difference.value == pytest.approx(3.0)
    assert (found.difference.low, found.difference.high) == pytest.approx((3 - half, 3 + half))
    assert found.p_value == pytest.approx(2 * stats.t.sf(3 / error, degrees))
    assert found.degrees_of_freedom == pytest.approx(degrees)
    assert (found.prompts, found.seeds, found.difference.n) == (3, 2, 3)


def test_seeds_that_agree_leave_the_interval_over_prompts() -> None:
    """The same gains with each seed: nothing is learnt from more seeds, and nothing of the width is theirs."""
    gains = np.random.default_rng(0).normal(0.3, 1, 40)
    found = crossed_difference(np.zeros((3, 40)), np.stack([gains] * 3)).difference
    expected = mean(gains)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_prompts_that_agree_leave_the_interval_over_seeds() -> None:
    gains = np.array([0.1, 0.2, 0.6])
    found = crossed_difference(np.zeros((3, 500)), np.repeat(gains[:, None], 500, axis=1)).difference
    expected = mean(gains)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_pairs_of_one_prompt_are_one_draw() -> None:
    """Each prompt three times is the same evidence as once."""
    draw = np.random.default_rng(1)
    first, second = draw.random((2, 3, 30))
    once = crossed_difference(first, second).difference
    thrice = crossed_difference(np.tile(first, 3), np.tile(second, 3), list(range(30)) * 3).difference
    assert (thrice.value, thrice.low, thrice.high) == pytest.approx((once.value, once.low, once.high))


def test_arms_that_are_equal_differ_by_nothing() -> None:
    same = np.random.default_rng(2).random((3, 20))
    found = crossed_difference(same, same)
    assert (found.difference.value, found.p_value) == (0.0, 1.0)


@pytest.mark.parametrize("spread_of_seeds", [0.0, 0.05])
@pytest.mark.parametrize("prompts", [40, 250])
def test_better_is_said_of_equal_arms_in_at_most_one_of_twenty(spread_of_seeds: float, prompts: int) -> None:
    """1,000 studies in which both arms are one setting; the bound allows for the draw of these (99.9 %)."""
    draw = np.random.default_rng(3)
    said = 0
    for _ in range(1000):
        ease = 0.8 + 0.15 * draw.normal(size=prompts)
        arms = [draw.random((3, prompts)) < ease + spread_of_seeds * draw.normal(size=(3, 1)) for _ in range(2)]
        said += crossed_difference(*(arm.astype(float) for arm in arms)).difference.low > 0
    assert said <= stats.binom.ppf(0.999, 1000, 0.05)
