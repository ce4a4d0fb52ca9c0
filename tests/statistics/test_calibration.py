"""Calibration against plain loops, and on margins whose truth is known."""

import itertools
import math

import numpy as np
import pytest

from simpo_cli.statistics import calibration, length_buckets, proportion


def test_the_error_and_the_score_by_hand() -> None:
    margins = [0.1, -0.1, 3.0, 2.9, 0.0, -4.0]
    confident = [1 / (1 + math.exp(-abs(m))) for m in margins]
    right = [1, 0, 1, 1, 0.5, 0]
    # 0.525, 0.525 and 0.5 share a bin; 0.953 and 0.948 lie in two; 0.982 joins 0.953
    bins = [[0, 1, 4], [3], [2, 5]]
    gaps = [abs(sum(right[i] - confident[i] for i in one)) for one in bins]
    result = calibration(margins)
    assert result.error.value == pytest.approx(sum(gaps) / 6)
    assert result.brier.value == pytest.approx(sum((1 - 1 / (1 + math.exp(-m))) ** 2 for m in margins) / 6)
    assert [one.accuracy.n for one in result.bins] == [3, 1, 2]
    assert result.bins[0].accuracy == proportion([1, 0, 0.5])
    assert (result.bins[0].low, result.bins[-1].high) == (0.5, 1.0)


def drawn(rng: np.random.Generator, n: int, boast: float) -> np.ndarray:
    """Margins that claim `boast` times the log-odds that are true."""
    odds = rng.normal(0, 1.5, n)
    preferred = rng.random(n) < 1 / (1 + np.exp(-odds))
    return boast * np.where(preferred, odds, -odds)


def test_a_calibrated_model_errs_by_chance_and_a_boaster_by_more() -> None:
    rng = np.random.default_rng(1)
    honest = [calibration(drawn(rng, 400, 1.0)) for _ in range(100)]
    assert np.mean([one.error.value for one in honest]) == pytest.approx(
        np.mean([one.error_by_chance for one in honest]), rel=0.1
    )
    boasting = calibration(drawn(rng, 2000, 4.0))
    assert boasting.error.low > 3 * boasting.error_by_chance
    assert boasting.brier.value > honest[0].brier.value


def test_huge_margins_are_certain_and_nothing_overflows() -> None:
    result = calibration([1e4, -1e4, 800.0])
    assert result.brier.value == pytest.approx(1 / 3)
    assert result.error.value == pytest.approx(1 / 3)


def test_buckets_of_length_hold_every_pair_once_and_never_part_equals() -> None:
    rng = np.random.default_rng(2)
    chosen, rejected = rng.integers(1, 60, 300), rng.integers(1, 60, 300)
    right = rng.integers(0, 2, 300)
    buckets = length_buckets(right, chosen, rejected)
    assert len(buckets) == 5
    assert sum(one.pairs for one in buckets) == 300
    assert all(before.high < after.low for before, after in itertools.pairwise(buckets))
    for one in buckets:
        at = (chosen - rejected >= one.low) & (chosen - rejected <= one.high)
        assert one.accuracy == proportion(right[at])
        assert 40 <= one.pairs <= 80


def test_few_or_equal_differences_make_fewer_buckets() -> None:
    [only] = length_buckets([1, 0, 1], [4, 5, 6], [3, 4, 5])
    assert (only.low, only.high, only.pairs, only.accuracy) == (1, 1, 3, None)
    two = length_buckets([1] * 30, [2] * 15 + [1] * 15, [1] * 15 + [2] * 15)
    assert [(one.low, one.pairs) for one in two] == [(-1, 15), (1, 15)]


def test_a_hundred_different_differences_make_buckets_of_twenty() -> None:
    buckets = length_buckets([1] * 100, range(101, 201), [1] * 100)
    assert [(one.low, one.high, one.pairs) for one in buckets] == [
        (100, 119, 20), (120, 139, 20), (140, 159, 20), (160, 179, 20), (180, 199, 20)
    ]  # fmt: skip
