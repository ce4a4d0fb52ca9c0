"""Rank statistics against scipy, loops over the formulas of the papers, the jackknife, and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from simpo_cli.statistics import median, signed_rank_test, spearman


def clustered(rng: np.random.Generator, prompts: int, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal values of variance 1, half of it shared by the pairs of a prompt; and the prompts."""
    groups = np.repeat(np.arange(prompts), rng.integers(1, repeats + 1, prompts) if repeats > 1 else 1)
    return (rng.normal(size=prompts)[groups] + rng.normal(size=len(groups))) / math.sqrt(2), groups


# ------------------------------------------------------------------------------------------------------------ Spearman


def test_the_correlation_is_scipys_also_with_ties() -> None:
    rng = np.random.default_rng(1)
    rewards, lengths = rng.normal(size=50), rng.integers(1, 20, 50)
    measured = spearman(rewards, lengths)
    assert measured is not None
    assert measured.value == pytest.approx(stats.spearmanr(rewards, lengths).statistic)
    assert measured.n == 50
    perfect = spearman([1.0, 2.0, 3.0], [10, 20, 30])
    assert perfect is not None
    assert perfect.value == pytest.approx(1.0)


@pytest.mark.parametrize(("rewards", "lengths"), [([], []), ([1.0, 2.0], [1, 2]), ([1.0, 2.0, 3.0], [5, 5, 5])])
def test_a_correlation_that_cannot_be_had_is_none(rewards: list[float], lengths: list[int]) -> None:
    assert spearman(rewards, lengths) is None


@pytest.mark.parametrize("levels", [7, 1000])
def test_its_standard_error_is_that_of_the_jackknife_over_prompts(levels: int) -> None:
    rng = np.random.default_rng(4)
    values, groups = clustered(rng, 120, 3)
    lengths = np.floor(levels * stats.norm.cdf(0.5 * values + rng.normal(size=len(values))))
    measured = spearman(values, lengths, groups)
    assert measured is not None
    without = [stats.spearmanr(values[groups != prompt], lengths[groups != prompt]).statistic for prompt in range(120)]
    error = math.sqrt(119 * np.var(without))
    half = (math.atanh(measured.high) - math.atanh(measured.low)) / 2 * (1 - measured.value**2)
    assert half == pytest.approx(stats.t.ppf(0.975, 119) * error, rel=0.06)


@pytest.mark.parametrize(("rho", "repeats"), [(-0.5, 1), (0.3, 4)])
def test_the_interval_of_a_correlation_covers_the_truth(rho: float, repeats: int) -> None:
    rng = np.random.default_rng(8)
    truth, covered = 6 / math.pi * math.asin(rho / 2), 0  # of a bivariate normal
    for _ in range(1000):
        first, groups = clustered(rng, 60, repeats)
        own = rng.normal(size=60)[groups] + rng.normal(size=len(groups))
        second = rho * first + math.sqrt((1 - rho**2) / 2) * own
        measured = spearman(first, second, groups)
        assert measured is not None
        covered += measured.low <= truth <= measured.high
    assert 0.93 <= covered / 1000 <= 0.97


def test_one_prompt_says_nothing_of_the_correlation_in_others() -> None:
    measured = spearman([1.0, 3.0, 2.0], [1, 2, 3], ["p"] * 3)
    assert measured is not None
    assert (measured.low, measured.high) == (-1, 1)


# -------------------------------------------------------------------------------------------------------------- median


def test_the_median_of_many_has_about_the_interval_of_order_statistics() -> None:
    values = np.random.default_rng(2).normal(size=401)
    ordered = np.sort(values)
    low, high = (int(stats.binom.ppf(share, 401, 0.5)) for share in (0.025, 0.975))
    measured = median(values)
    assert measured.value == np.median(values)
    assert measured.low == pytest.approx(ordered[low], abs=0.02)
    assert measured.high == pytest.approx(ordered[high], abs=0.02)


@pytest.mark.parametrize("repeats", [1, 4])
def test_the_interval_of_a_median_covers_the_truth(repeats: int) -> None:
    rng, covered = np.random.default_rng(3), 0
    for _ in range(1000):
        values, groups = clustered(rng, 80, repeats)
        measured = median(np.exp(values), groups)  # skewed, as margins are
        covered += measured.low <= 1 <= measured.high
    assert 0.93 <= covered / 1000 <= 0.97


@pytest.mark.parametrize("values", [[2.0], [1.0, 2.0, 4.0], [1.0, math.nan, 2.0]])
def test_a_median_that_nothing_bounds_has_no_bounds(values: list[float]) -> None:
    measured = median(values, ["p"] * len(values))
    assert (measured.low, measured.high) == (-math.inf, math.inf)


# --------------------------------------------------------------------------------------------------------- signed rank


def every_sign(changes: list[float]) -> float:
    """Wilcoxon's exact test by trying all signs."""
    ranks = stats.rankdata(np.abs(changes))
    seen = abs(float((np.sign(changes) * ranks).sum()))
    sums = [
        abs(sum(s * r for s, r in zip(signs, ranks, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(changes))
    ]
    return sum(total >= seen - 1e-9 for total in sums) / len(sums)


def test_without_repeats_it_is_wilcoxons_exact_test() -> None:
    changes = np.random.default_rng(6).normal(0.4, 1, 9).tolist()
    result = signed_rank_test(changes, range(9))
    assert result.test == "wilcoxon"
    assert result.p_value == pytest.approx(every_sign(changes))


def test_equal_changes_share_a_rank_and_no_change_has_none() -> None:
    changes = [0.5, -0.5, 1.0, 0.0, 1.0, -2.0, 0.5, 0.0, 3.0]
    assert signed_rank_test(changes).p_value == pytest.approx(every_sign([one for one in changes if one]))


@pytest.mark.parametrize(("n", "digits"), [(50, 15), (51, 15), (400, 15), (400, 1)])
def test_many_changes_go_by_the_normal_distribution(n: int, digits: int) -> None:
    changes = np.round(np.random.default_rng(n + digits).normal(0.1, 1, n), digits)
    reference = stats.wilcoxon(changes, method="exact" if n == 50 else "asymptotic")
    assert signed_rank_test(changes).p_value == pytest.approx(reference.pvalue, rel=1e-9)


def datta_satten_by_loops(changes: list[list[float]]) -> float:
    """Datta and Satten (2008), section 2, one pair and one prompt at a time."""

    def share(prompt: list[float], x: float) -> float:
        return sum((abs(y) < x) + (abs(y) <= x) for y in prompt) / (2 * len(prompt))

    pairs = sum(map(len, changes))
    statistic = variance = 0.0
    for i, prompt in enumerate(changes):
        vote = spread = 0.0
        for x in prompt:
            sign = (x > 0) - (x < 0)
            others = sum(share(other, abs(x)) for j, other in enumerate(changes) if j != i)
            overall = sum(share(other, abs(x)) * len(other) for other in changes) / pairs
            vote += sign * (1 + others) / len(prompt)
            spread += sign * (1 + (len(changes) - 1) * overall) / len(prompt)
        statistic += vote
        variance += spread**2
    return float(2 * stats.norm.sf(abs(statistic) / math.sqrt(variance)))


@pytest.mark.parametrize("seed", range(4))
def test_with_repeats_it_is_datta_and_sattens_also_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    changes = [np.round(rng.normal(0.3, 1, rng.integers(1, 5)), 1).tolist() for _ in range(25)] + [[0.0, 0.1]]
    flat = [x for prompt in changes for x in prompt]
    groups = [i for i, prompt in enumerate(changes) for _ in prompt]
    order = rng.permutation(len(flat))
    result = signed_rank_test(np.array(flat)[order], np.array(groups)[order])
    assert result.test == "datta-satten"
    assert result.p_value == pytest.approx(datta_satten_by_loops(changes))


def test_it_seldom_cries_wolf_when_a_prompts_pairs_go_together() -> None:
    rng, alarms, naive = np.random.default_rng(9), 0, 0
    for number in range(1000):
        values, groups = clustered(rng, 60, 6)
        alarms += signed_rank_test(values, groups).p_value < 0.05
        naive += number < 200 and signed_rank_test(values).p_value < 0.05
    assert 0.03 <= alarms / 1000 <= 0.07
    assert naive / 200 > 0.12  # what taking pairs for independent would do


def test_no_change_at_all_is_no_difference() -> None:
    assert signed_rank_test([0.0] * 5).p_value == 1.0
    assert signed_rank_test([0.0] * 6, [0, 0, 1, 1, 2, 2]).p_value == 1.0
