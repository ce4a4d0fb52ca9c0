"""Intervals and tests against references that share no code: fractions, itertools, scipy's own, and simulation."""

import itertools
import json
import math
import random
import subprocess
import sys
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from simpo_cli.statistics import (
    Measured,
    balanced_difference,
    compare_accuracy,
    length_strata,
    longer_wins,
    mean,
    proportion,
)

CORRECT = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=60)


def bounds(measured: Measured) -> tuple[float, float]:
    return measured.low, measured.high


# ---------------------------------------------------------------------------------------------- proportion, no repeats


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 7), (7, 7), (3, 10), (256, 500), (482, 500), (1, 5000)])
def test_a_plain_share_has_scipys_wilson_interval(right: int, n: int) -> None:
    reference = stats.binomtest(right, n).proportion_ci(method="wilson")
    measured = proportion([1] * right + [0] * (n - right))
    assert measured.value == pytest.approx(right / n)
    assert bounds(measured) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert measured.n == n


def test_a_tie_counts_one_half() -> None:
    assert bounds(proportion([1, 0.5, 0.5, 0])) == pytest.approx(bounds(proportion([1, 1, 0, 0])))


@given(CORRECT, st.randoms(use_true_random=False))
def test_an_interval_holds_its_value_and_stays_in_0_to_1(correct: list[float], rng: random.Random) -> None:
    groups = [rng.randrange(1 + len(correct) // 2) for _ in correct]
    measured = proportion(correct, groups)
    assert 0 <= measured.low <= measured.value <= measured.high <= 1


# ------------------------------------------------------------------------------------------------ proportion, repeats


def reference_proportion(correct: list[Fraction], groups: list[int]) -> tuple[float, float]:
    """By hand, in fractions: design effect, one pair's worth of prior, Wilson's roots with a t quantile."""
    n, prompts = len(correct), sorted(set(groups))
    share = sum(correct, Fraction(0)) / n
    without = []
    for prompt in prompts:
        kept = [right for right, group in zip(correct, groups, strict=True) if group != prompt]
        without.append(sum(kept, Fraction(0)) / len(kept))
    j = len(prompts)
    variance = Fraction(j - 1, j) * sum(((left - share) ** 2 for left in without), Fraction(0))
    variance = max(variance, alike(correct, groups))
    agreeing = sum((Fraction(groups.count(prompt), n) ** 2 for prompt in prompts), Fraction(0))
    effective = min(Fraction(n), (share * (1 - share) + Fraction(1, n)) / (variance + agreeing / n))
    t = stats.t.ppf(0.975, max(1.0, float(1 / agreeing) - 1))
    # the two roots of (share - p)^2 = t^2 p (1 - p) / n_eff
    roots = np.roots([1 + t**2 / effective, -(2 * share + t**2 / effective), share**2])
    return float(min(roots)), float(max(roots))


def alike(values: list[Fraction], groups: list[int]) -> Fraction:
    """Variance of their mean if all pairs of a prompt correlate alike: the mean of all covariances, pair by pair."""
    n, prompts = len(values), sorted(set(groups))
    members = [[value for value, group in zip(values, groups, strict=True) if group == prompt] for prompt in prompts]
    of_all, middle = sum(values, Fraction(0)) / n, [sum(one, Fraction(0)) / len(one) for one in members]
    total = sum(((value - of_all) ** 2 for value in values), Fraction(0)) / n
    if n == len(prompts) or total == 0:
        return Fraction(0)
    inside = [(value - mean) ** 2 for one, mean in zip(members, middle, strict=True) for value in one]
    together = min(Fraction(1), max(Fraction(0), 1 - sum(inside, Fraction(0)) / (n - len(prompts)) / total))
    covariances = [
        total if i == k else together * total if groups[i] == groups[k] else Fraction(0)
        for i in range(n)
        for k in range(n)
    ]
    return sum(covariances, Fraction(0)) / n**2


@pytest.mark.parametrize("seed", range(8))
def test_a_share_over_repeated_prompts_agrees_with_the_formula_in_fractions(seed: int) -> None:
    rng = random.Random(seed)
    n = rng.randrange(6, 60)
    groups = [rng.randrange(2 + n // 3) for _ in range(n - 2)] + [0, 1]
    correct = [Fraction(rng.choice([0, 1, 1, 2]), 2) for _ in range(n)]
    measured = proportion([float(right) for right in correct], groups)
    assert bounds(measured) == pytest.approx(reference_proportion(correct, groups), abs=1e-9)


def test_copies_of_every_pair_under_one_prompt_do_not_make_the_interval_much_narrower() -> None:
    correct = [1] * 70 + [0] * 30
    once, copied = proportion(correct), proportion(correct * 5, list(range(100)) * 5)
    assert copied.high - copied.low >= once.high - once.low  # t instead of z, and no more information
    assert copied.high - copied.low <= 1.1 * (once.high - once.low)
    assert copied.n == 500


def test_everything_right_is_no_proof_of_perfection() -> None:
    every, nearly = proportion([1] * 40, [i // 2 for i in range(40)]), proportion([1] * 39 + [0], range(40))
    assert every.high == 1
    assert 0.7 < every.low < 0.9  # about what 20 prompts tell, not 40
    assert bounds(proportion([0] * 40, [i // 2 for i in range(40)])) == pytest.approx((1 - every.high, 1 - every.low))
    assert nearly.high < 1


def test_one_prompt_says_nothing_about_the_next() -> None:
    assert bounds(proportion([1, 1, 1, 0], ["same"] * 4)) == (0, 1)
    assert proportion([1], ["same"]) == proportion([1])


def test_groups_may_be_anything_hashable_in_any_order() -> None:
    correct = [1, 0, 1, 1, 0.5, 1]
    assert proportion(correct, ["x", "y", "x", "z", "z", "y"]) == proportion(correct, (7, 3, 7, 5, 5, 3))
    assert proportion(correct, list("abcdef")) == proportion(correct)  # distinct prompts change nothing


# ---------------------------------------------------------------------------------------------------------------- mean


def test_a_plain_mean_has_the_t_interval() -> None:
    values = [0.3, -1.2, 2.5, 0.0, 0.7]
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert bounds(mean(values)) == pytest.approx((reference.low, reference.high))


def test_a_mean_over_equal_prompts_has_the_t_interval_of_the_prompts_means() -> None:
    values = np.array([[0.1, 0.5], [2.0, 1.0], [-1.0, -0.5], [0.3, 0.2]])
    reference = stats.ttest_1samp(values.mean(axis=1), 0).confidence_interval(0.95)
    measured = mean(values.ravel(), np.repeat(np.arange(4), 2).tolist())
    assert bounds(measured) == pytest.approx((reference.low, reference.high))
    assert measured.n == 8


def test_a_mean_over_unequal_prompts_is_jackknifed() -> None:
    values, groups = [1.0, 2.0, 4.0, 0.0, -1.0, 3.0], ["a", "a", "a", "b", "c", "c"]
    left_out = [np.mean([v for v, g in zip(values, groups, strict=True) if g != out]) for out in "abc"]
    half = stats.t.ppf(0.975, 36 / 14 - 1) * math.sqrt(2 / 3 * sum((left - 1.5) ** 2 for left in left_out))
    assert bounds(mean(values, groups)) == pytest.approx((1.5 - half, 1.5 + half))


def test_one_prompt_gives_a_mean_without_an_interval_and_json_says_null() -> None:
    assert bounds(mean([1.0, 2.0], ["p", "p"])) == (-math.inf, math.inf)
    document = json.dumps(mean([2.0]).as_json(), allow_nan=False)
    assert json.loads(document) == {"value": 2.0, "ci": [None, None], "n": 1}


def test_what_is_not_a_number_is_not_hidden() -> None:
    assert math.isnan(mean([1.0, math.nan, 2.0]).value)


# ---------------------------------------------------------------------------------------------------------- comparison


def two_sided_coin(wins: int, losses: int) -> float:
    """P(a fair coin is at least this lopsided), by counting."""
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(max(wins, losses), n + 1))
    return min(1.0, float(Fraction(2 * tail, 2**n)))


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 5), (9, 1), (2, 17), (60, 30)])
def test_distinct_prompts_are_compared_by_mcnemars_exact_test(wins: int, losses: int) -> None:
    base = [0] * wins + [1] * losses + [1, 1, 0]
    tuned = [1] * wins + [0] * losses + [1, 1, 0]
    result = compare_accuracy(base, tuned, range(len(base)))
    assert result.test == "mcnemar-exact"
    assert result.p_value == pytest.approx(two_sided_coin(wins, losses))
    assert (result.wins, result.losses, result.ties) == (wins, losses, 3)
    assert result.difference.value == pytest.approx((wins - losses) / len(base))


def every_flip(gains: list[float]) -> float:
    """The sign-flip test the slow way."""
    seen = abs(sum(gains))
    flips = [
        sum(s * g for s, g in zip(signs, gains, strict=True)) for signs in itertools.product((1, -1), repeat=len(gains))
    ]
    return sum(abs(total) >= seen for total in flips) / len(flips)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 9))
def test_repeated_prompts_are_compared_by_flipping_every_prompts_sign(seed: int, prompts: int) -> None:
    rng = random.Random(seed)
    groups = list(range(prompts)) + [rng.randrange(prompts) for _ in range(rng.randrange(1, 12))]
    base, tuned = ([rng.choice([0, 0.5, 1, 1]) for _ in groups] for _ in range(2))
    gains: dict[int, float] = defaultdict(float)
    for group, before, after in zip(groups, base, tuned, strict=True):
        gains[group] += after - before
    result = compare_accuracy(base, tuned, groups)
    assert result.test == "sign-flip-by-prompt"
    assert result.p_value == pytest.approx(every_flip(list(gains.values())))
    assert result == compare_accuracy(base, tuned, groups)


def test_ten_copies_of_one_prompt_are_not_ten_witnesses() -> None:
    base, tuned, groups = [0] * 10, [1] * 10, ["one"] * 10
    result = compare_accuracy(base, tuned, groups)
    assert result.p_value == 1.0
    assert bounds(result.difference) == (-1, 1)
    assert compare_accuracy(base, tuned, range(10)).p_value < 0.01


def test_ten_thousand_prompts_are_still_counted_exactly() -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(10_000), 2)
    base, tuned = rng.integers(0, 2, 20_000), rng.integers(0, 2, 20_000)
    gains = np.bincount(groups, weights=tuned - base)
    reference = 2 * stats.norm.sf(abs(gains.sum()) / math.sqrt((gains**2).sum()))
    assert compare_accuracy(base, tuned, groups.tolist()).p_value == pytest.approx(reference, abs=0.01)


def test_two_models_that_agree_on_ten_pairs_may_still_differ() -> None:
    difference = compare_accuracy([1] * 10, [1] * 10, range(10)).difference
    assert difference.value == 0
    assert difference.low < -0.05
    assert difference.high > 0.05


def test_an_unequal_comparison_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="2 pairs of the base model, 3 of the tuned one"):
        compare_accuracy([1, 0], [1, 0, 1], None)


# -------------------------------------------------------------------------------------------------------------- length


def test_a_model_that_only_likes_length_is_at_one_half_once_balanced() -> None:
    longer_by = np.array([10] * 80 + [-10] * 20 + [0] * 5)
    correct = [1] * 80 + [0] * 20 + [1] * 5
    strata = length_strata(correct, longer_by, range(105))
    assert strata["chosen_longer"] == proportion([1] * 80)
    assert strata["chosen_shorter"] == proportion([0] * 20)
    balanced = strata["balanced"]
    assert balanced is not None
    assert balanced.value == 0.5
    assert balanced.low < 0.5 < balanced.high
    assert balanced.n == 100  # equal lengths are in neither stratum
    assert proportion(correct).value > 0.8


@pytest.mark.parametrize(("longer", "shorter", "missing"), [(9, 40, "chosen_longer"), (40, 9, "chosen_shorter")])
def test_a_stratum_under_ten_pairs_is_none_and_so_is_the_balance(longer: int, shorter: int, missing: str) -> None:
    strata = length_strata([1] * 49, np.array([1] * longer + [-1] * shorter), None)
    present = "chosen_shorter" if missing == "chosen_longer" else "chosen_longer"
    assert strata[missing] is None
    assert strata[present] is not None
    assert strata["balanced"] is None


def test_the_balance_of_one_prompt_is_unknown() -> None:
    strata = length_strata([1] * 20, np.array([1] * 10 + [-1] * 10), ["p"] * 20)
    assert strata["balanced"] == Measured(1.0, 0.0, 1.0, 20)


def test_the_balanced_gain_is_the_mean_of_both_sides_gains() -> None:
    base = np.array([0.0] * 30 + [1.0] * 10 + [1.0] * 7)
    tuned = np.array([1.0] * 24 + [0.0] * 6 + [1.0] * 8 + [0.0] * 2 + [0.0] * 7)
    longer_by = np.array([1] * 30 + [-1] * 10 + [0] * 7)
    gain = balanced_difference(base, tuned, longer_by)
    assert gain is not None
    assert gain.value == pytest.approx((24 / 30 - 2 / 10) / 2)  # pairs of equal length are in neither
    assert gain.n == 40
    assert gain.low < gain.value < gain.high
    assert balanced_difference(base[1:22], tuned[1:22], longer_by[1:22]) is None
    one_prompt = balanced_difference(base, tuned, longer_by, [0] * 47)
    assert one_prompt is not None
    assert bounds(one_prompt) == (-1.0, 1.0)
    same = balanced_difference(base, base, longer_by)
    assert same is not None
    assert same.low < 0 < same.high  # forty pairs without a change do not prove that there is none


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_interval_of_a_balanced_gain_covers_the_truth(repeats: int) -> None:
    draw = np.random.default_rng(7)
    prompts, truth, covered, rounds = 90, (0.2 + 0.05) / 2, 0, 600
    for _ in range(rounds):
        longer = np.repeat(draw.random(prompts) < 0.7, repeats)
        # pairs of a prompt share their luck half of the time
        shared, own = np.repeat(draw.random(prompts), repeats), draw.random(prompts * repeats)
        luck = np.where(draw.random(prompts * repeats) < 0.5, shared, own)
        base = (luck < np.where(longer, 0.5, 0.6)).astype(np.float64)
        tuned = (luck < np.where(longer, 0.7, 0.65)).astype(np.float64)
        groups = np.repeat(np.arange(prompts), repeats)
        gain = balanced_difference(base, tuned, np.where(longer, 1, -1), groups)
        assert gain is not None
        covered += gain.low <= truth <= gain.high
    assert 0.93 <= covered / rounds <= 0.985


def test_the_longer_wins_with_equal_lengths_at_one_half() -> None:
    assert longer_wins(np.array([2, -2, 0, 7]), None) == proportion([1, 0, 0.5, 1])


# --------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize("bad", [[], [0.3], [math.nan], [[1, 0]]])
def test_a_share_that_is_not_one_is_our_own_mistake(bad: list[float]) -> None:
    with pytest.raises(AssertionError):
        proportion(bad)


def test_statistics_do_not_import_torch() -> None:
    program = "import sys, simpo_cli.statistics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
