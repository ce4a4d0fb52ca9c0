"""Statistics against simulations with known truth, plain loops, and statsmodels."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from simpo_cli.statistics import (
    balanced_difference,
    calibration,
    compare_accuracy,
    holm,
    length_buckets,
    length_strata,
    mean,
    over_seeds,
    proportion,
    smallest_effect,
)
from simpo_cli.statistics.measured import wilson

ROUNDS = 1000


def prompts_of(rng: np.random.Generator, prompts: int, repeats: int) -> np.ndarray:
    """Prompts of pairs: 1 to `repeats` pairs a prompt."""
    return np.repeat(np.arange(prompts), rng.integers(1, repeats + 1, prompts) if repeats > 1 else 1)


def lucks(rng: np.random.Generator, groups: np.ndarray) -> np.ndarray:
    """Uniform numbers that the pairs of a prompt share half of the time."""
    return np.where(rng.random(len(groups)) < 0.5, rng.random(groups[-1] + 1)[groups], rng.random(len(groups)))


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("prompts", [60, 200])
def test_accuracy_of_repeated_prompts(prompts: int, share: float) -> None:
    rng, covered = np.random.default_rng(1), 0
    for _ in range(ROUNDS):
        groups = prompts_of(rng, prompts, 4)
        measured = proportion(lucks(rng, groups) < share, groups)
        covered += measured.low <= share <= measured.high
    assert 0.93 <= covered / ROUNDS <= 0.97


def uneven(prompts: int) -> np.ndarray:
    """Prompts of pairs: one prompt in ten has 15 pairs, the others one each."""
    return np.repeat(np.arange(prompts), np.where(np.arange(prompts) < prompts // 10, 15, 1))


def agreeing(rng: np.random.Generator, groups: np.ndarray, correlation: float) -> np.ndarray:
    """Uniform numbers; what is below a bound correlates so much between the pairs of a prompt."""
    shared = rng.random(len(groups)) < correlation**0.5
    return np.where(shared, rng.random(groups[-1] + 1)[groups], rng.random(len(groups)))


@pytest.mark.parametrize("correlation", [0.25, 0.9])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("prompts", [50, 100, 200, 400])
def test_accuracy_where_few_prompts_hold_most_pairs(prompts: int, share: float, correlation: float) -> None:
    """By the jackknife and t on prompts - 1 alone, 74 to 95 of 100 intervals held the truth."""
    rng, groups, covered = np.random.default_rng(7), uneven(prompts), 0
    for _ in range(ROUNDS):
        measured = proportion(agreeing(rng, groups, correlation) < share, groups)
        covered += measured.low <= share <= measured.high
    assert 0.94 <= covered / ROUNDS <= 0.995


@pytest.mark.parametrize("prompts", [20, 30, 50, 100, 200])
def test_a_mean_where_few_prompts_hold_most_pairs(prompts: int) -> None:
    rng, groups, covered = np.random.default_rng(8), uneven(prompts), 0
    for _ in range(ROUNDS):
        values = 0.9**0.5 * rng.normal(size=prompts)[groups] + 0.1**0.5 * rng.normal(size=len(groups))
        measured = mean(values, groups)
        covered += measured.low <= 0 <= measured.high
    assert 0.93 <= covered / ROUNDS <= 0.995


@pytest.mark.parametrize(("before", "after"), [(0.5, 0.7), (0.7, 0.9), (0.6, 0.6)])
@pytest.mark.parametrize("prompts", [30, 50, 100, 200])
def test_a_paired_difference_where_few_prompts_hold_most_pairs(prompts: int, before: float, after: float) -> None:
    rng, groups, covered, alarms = np.random.default_rng(9), uneven(prompts), 0, 0
    for _ in range(ROUNDS):
        luck = agreeing(rng, groups, 0.9)
        again = np.where((rng.random(prompts) < 0.6)[groups], luck, agreeing(rng, groups, 0.9))
        result = compare_accuracy(luck < before, again < after, groups)
        covered += result.difference.low <= after - before <= result.difference.high
        alarms += result.p_value < 0.05
    assert covered / ROUNDS >= 0.93
    assert before != after or alarms / ROUNDS <= 0.06


@pytest.mark.parametrize("n", [60, 61, 200, 1000])
def test_accuracy_of_single_prompts_on_average_over_true_shares(n: int) -> None:
    """Exact, by the binomial; for one share alone coverage jumps with it, as every interval's does that is a set."""
    right = np.arange(n + 1)
    bounds = np.array([wilson(k / n, n, float(stats.norm.ppf(0.975))) for k in right])
    truths = np.linspace(0.5, 0.9, 401)[:, None]
    inside = (bounds[:, 0] <= truths) & (truths <= bounds[:, 1])
    covered = (stats.binom.pmf(right, n, truths) * inside).sum(axis=1)
    assert 0.945 <= covered.mean() <= 0.955
    assert covered.min() > 0.91


@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.parametrize(("before", "after"), [(0.5, 0.7), (0.7, 0.9), (0.6, 0.6)])
def test_a_paired_difference(before: float, after: float, repeats: int) -> None:
    rng, covered, alarms = np.random.default_rng(2), 0, 0
    for _ in range(ROUNDS):
        groups = prompts_of(rng, 60, repeats)
        luck = lucks(rng, groups)
        again = np.where(rng.random(len(groups)) < 0.6, luck, lucks(rng, groups))  # the models agree in part
        result = compare_accuracy(luck < before, again < after, groups)
        covered += result.difference.low <= after - before <= result.difference.high
        alarms += result.p_value < 0.05
    assert 0.93 <= covered / ROUNDS <= 0.97
    if before == after:
        assert alarms / ROUNDS <= 0.06
    else:
        assert alarms / ROUNDS >= 0.6


@pytest.mark.parametrize("repeats", [1, 4])
def test_the_smallest_effect_is_seen_in_about_four_of_five_samples(repeats: int) -> None:
    rng, gain, seen, told = np.random.default_rng(3), 0.12, 0, []
    prompts = 140 if repeats == 1 else 73  # where about this gain is the smallest that can be seen
    for _ in range(ROUNDS // 2):
        groups = prompts_of(rng, prompts, repeats)
        luck = lucks(rng, groups)
        again = np.where(rng.random(len(groups)) < 0.55, luck, lucks(rng, groups))
        base, tuned = (luck < 0.6).astype(float), (again < 0.6 + gain).astype(float)
        told.append(smallest_effect(base, tuned, groups))
        difference = compare_accuracy(base, tuned, groups).difference
        seen += difference.low > 0
    assert np.mean(told) == pytest.approx(gain, rel=0.03)
    assert 0.75 <= seen / (ROUNDS // 2) <= 0.85


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_planted_model_that_goes_by_length_alone_is_worth_one_half(repeats: int) -> None:
    """In these data the longer response is the better one in 80 of 100 pairs, and the model knows nothing else."""
    rng, rounds, plain, covered, gains = np.random.default_rng(4), 0, 0, 0, 0
    for _ in range(ROUNDS):
        groups = prompts_of(rng, 150, repeats)
        longer = lucks(rng, groups) < 0.8
        other = rng.random(len(groups)) < 0.1  # it errs in one of ten
        right = (longer != other).astype(float)
        longer_by = np.where(longer, 1, -1)
        balanced = length_strata(right, longer_by, groups)["balanced"]
        gain = balanced_difference(np.full(len(right), 0.5), right, longer_by, groups)
        if balanced is None or gain is None:
            continue  # under ten pairs in which the shorter one is the better
        rounds += 1
        plain += proportion(right, groups).low > 0.5
        covered += balanced.low <= 0.5 <= balanced.high
        gains += gain.low <= 0 <= gain.high
    assert rounds > 0.95 * ROUNDS
    assert plain / rounds > 0.95
    assert 0.93 <= covered / rounds <= 0.97
    assert gains / rounds >= 0.93


def test_one_prompt_shows_no_effect_at_all() -> None:
    assert smallest_effect([0, 1], [1, 1], ["p", "p"]) is None


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
    longer_by = rng.integers(1, 60, 300) - rng.integers(1, 60, 300)
    right = rng.integers(0, 2, 300)
    buckets = length_buckets(right, longer_by)
    assert len(buckets) == 5
    assert sum(one.pairs for one in buckets) == 300
    assert all(before.high < after.low for before, after in itertools.pairwise(buckets))
    for one in buckets:
        at = (longer_by >= one.low) & (longer_by <= one.high)
        assert one.accuracy == proportion(right[at])
        assert 40 <= one.pairs <= 80


def test_few_or_equal_differences_make_fewer_buckets() -> None:
    [only] = length_buckets([1, 0, 1], np.array([1, 1, 1]))
    assert (only.low, only.high, only.pairs, only.accuracy) == (1, 1, 3, None)
    two = length_buckets([1] * 30, np.array([1] * 15 + [-1] * 15))
    assert [(one.low, one.pairs) for one in two] == [(-1, 15), (1, 15)]


def test_a_hundred_different_differences_make_buckets_of_twenty() -> None:
    buckets = length_buckets([1] * 100, np.arange(100, 200))
    assert [(one.low, one.high, one.pairs) for one in buckets] == [
        (100, 119, 20), (120, 139, 20), (140, 159, 20), (160, 179, 20), (180, 199, 20)
    ]  # fmt: skip


@pytest.mark.parametrize("p_values", [[0.03], [0.01, 0.04, 0.03, 0.9], [0.2, 0.2, 0.001], []])
def test_holms_method(p_values: list[float]) -> None:
    expected = multipletests(p_values, method="holm")[1].tolist() if p_values else []
    assert holm(p_values) == pytest.approx(expected)


def test_the_interval_over_seeds() -> None:
    accuracies = [0.61, 0.64, 0.59, 0.63]
    measured = over_seeds(accuracies)
    assert (measured.low, measured.high) == pytest.approx(DescrStatsW(accuracies).tconfint_mean())
    assert measured.n == 4
    with pytest.raises(AssertionError):
        over_seeds([0.6])
