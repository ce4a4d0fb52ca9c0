"""Tests: two models on the same pairs, changes of a number, several tests at once, several seeds.

The difference in accuracy with its test and the smallest one that could be seen; Wilcoxon's signed-rank test and what
takes its place where prompts repeat; Holm's correction.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr, ndtr, ndtri

from simpo_cli.statistics.measured import (
    Codes,
    Floats,
    Groups,
    Measured,
    as_shares,
    effective_prompts,
    mean,
    prompt_codes,
    share_below,
    student,
    sums_by_prompt,
    variance_of_mean,
)

POWER = 0.8
"""How often the smallest effect that can be seen would be seen."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same pairs. Wins are pairs that only the tuned model got right, losses the reverse."""

    difference: Measured  # accuracy of the tuned model less that of the base model, -1..1
    p_value: float  # two-sided
    test: Literal["mcnemar-exact", "sign-flip-by-prompt"]
    wins: int
    losses: int
    ties: int  # pairs on which both did equally well; they say nothing about the difference


def compare_accuracy(base_correct: ArrayLike, tuned_correct: ArrayLike, groups: Groups = None) -> Comparison:
    """Base against tuned on the same pairs: is the difference in accuracy more than chance?

    If every prompt occurs once: McNemar's exact test, that is, a fair coin on the pairs that only one model got right.
    Else the sign-flip test by prompt: if the models were equal, each prompt's difference could as well have had the
    other sign. Its p-value is exact (all 2^prompts flips, summed by value), so there is no seed.
    """
    base, tuned = as_shares(base_correct), as_shares(tuned_correct)
    assert base.shape == tuned.shape, f"{len(base)} pairs of the base model, {len(tuned)} of the tuned one"
    gains = tuned - base
    codes, num_prompts = prompt_codes(groups, len(gains))
    wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
    test: Literal["mcnemar-exact", "sign-flip-by-prompt"]
    if num_prompts == len(gains):  # the share of all tosses of a fair coin that are at least as uneven as the one seen
        test, p_value = "mcnemar-exact", min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))
    else:
        test, p_value = "sign-flip-by-prompt", sign_flip_p_value(sums_by_prompt(gains, codes, num_prompts))
    difference = _paired_difference(gains, codes, num_prompts)
    return Comparison(difference, p_value, test, wins, losses, ties=len(gains) - wins - losses)


def _paired_difference(gains: Floats, codes: Codes, num_prompts: int) -> Measured:
    """Mean gain with its interval, by prompt, after Agresti and Min (Statistics in Medicine 24, 2005).

    Half a pair is added to each outcome (both right, both wrong, a win, a loss) before the interval is taken. Without
    it, models that agree on all of ten pairs would differ by "0, interval 0 to 0".

    Args:
        gains: (n,) in steps of one half, -1..1: what the tuned model got right less what the base model did.
    """
    n, value = len(gains), float(gains.mean())
    if num_prompts == 1:
        return Measured(value, -1.0, 1.0, n)
    centre, error = _padded(gains, codes, num_prompts)
    half = student(effective_prompts(codes)) * error
    return Measured(value, max(-1.0, min(centre - half, value)), min(1.0, max(centre + half, value)), n)


def _padded(gains: Floats, codes: Codes, num_prompts: int) -> tuple[float, float]:
    """Mean gain and its standard error with half a pair added to each outcome."""
    padded_n = len(gains) + 2
    centre = float(gains.sum()) / padded_n
    variance = variance_of_mean(gains - centre, 1 / padded_n, codes, num_prompts)
    return centre, math.sqrt(variance + added_variance(centre, padded_n))


def smallest_effect(base_correct: ArrayLike, tuned_correct: ArrayLike, groups: Groups = None) -> float | None:
    """The smallest difference in accuracy that these pairs would show in four out of five samples, 0..1.

        (t(0.975, effective prompts - 1) + z(0.8)) * standard error of the paired difference

    The standard error is that of the interval of `compare_accuracy`, so it goes by how often the two models disagree on
    these pairs. None for one prompt.
    """
    gains = as_shares(tuned_correct) - as_shares(base_correct)
    codes, num_prompts = prompt_codes(groups, len(gains))
    if num_prompts == 1:
        return None
    _, error = _padded(gains, codes, num_prompts)
    return min(1.0, (student(effective_prompts(codes)) + float(ndtri(POWER))) * error)


def added_variance(centre: float, padded_n: int) -> float:
    """What half a pair of each outcome adds to the variance of a mean gain."""
    return 0.5 * ((1 - centre) ** 2 + (1 + centre) ** 2 + 2 * centre**2) / padded_n**2


def sign_flip_p_value(gains: Floats) -> float:
    """Two-sided share of all sign flips of `gains` (prompts,) whose sum is at least as far from 0 as the one seen.

    Gains come in steps of one half, so the sums of all 2^prompts flips lie on a grid of whole numbers, and their
    distribution is built up exactly: one prompt moves it up or down by its gain, half of it each way.
    """
    steps = np.rint(np.abs(gains) * 2).astype(np.int64)
    reach = int(steps.sum())
    seen = abs(round(float(gains.sum()) * 2))
    chances = np.zeros(2 * reach + 1)  # chances[reach + s]: that the sum is s
    chances[reach] = 1.0
    span = 0  # sums so far lie within -span..span
    for step in steps[steps > 0].tolist():
        before = chances[reach - span : reach + span + 1] / 2
        span += step
        chances[reach - span : reach + span + 1] = 0.0
        chances[reach - span : reach + span + 1 - 2 * step] += before
        chances[reach - span + 2 * step : reach + span + 1] += before
    # the chances are symmetric; the sum seen itself counts, so p is never 0 but by underflow
    upper = float(chances[reach + seen :].sum())
    return min(1.0, 2 * upper) if seen else 1.0


_MOST_EXACT = 50


@dataclass(frozen=True, slots=True)
class RankTest:
    """Whether changes lie around zero: the p-value, two-sided, and what it was taken with."""

    p_value: float
    test: Literal["wilcoxon", "datta-satten"]


def signed_rank_test(changes: ArrayLike, groups: Groups = None) -> RankTest:
    """Test that changes are as likely up as down, big ones like small ones.

    If every prompt occurs once: Wilcoxon's signed-rank test (Biometrics Bulletin 1, 1945), changes of 0 left out, exact
    up to 50 changes and by the normal distribution above. Else the test of Datta and Satten ("A signed-rank test for
    clustered data", Biometrics 64, 2008), in which every prompt has one vote however many pairs it has; it goes by the
    normal distribution, so under 30 prompts it is rough.
    """
    numbers = np.asarray(changes, dtype=np.float64)
    codes, num_prompts = prompt_codes(groups, len(numbers))
    if not numbers.any():
        return RankTest(1.0, "wilcoxon" if num_prompts == len(numbers) else "datta-satten")
    if num_prompts == len(numbers):
        return RankTest(_wilcoxon(numbers[numbers != 0]), "wilcoxon")
    return RankTest(_datta_satten(numbers, codes, num_prompts), "datta-satten")


def _wilcoxon(numbers: Floats) -> float:
    """Two-sided p-value: the sign-flip test on the ranks of the absolute changes, equal ones sharing theirs."""
    _, codes, counts = np.unique(np.abs(numbers), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[codes]
    signed = np.sign(numbers) * ranks
    if len(signed) <= _MOST_EXACT:
        return sign_flip_p_value(signed)
    return float(2 * ndtr(-abs(float(signed.sum())) / math.sqrt(float(ranks @ ranks))))


def _datta_satten(numbers: Floats, codes: Codes, num_prompts: int) -> float:
    """Two-sided p-value, by the mean of the signed-rank statistic over all draws of one pair from each prompt.

        T = sum over prompts of the mean of its pairs' sign(x) * (1 + sum over other prompts of F_other(|x|))
        V = sum over prompts of (the mean of its pairs' sign(x) * (1 + (prompts - 1) * F(|x|)))^2

    F is the share of absolute changes below |x|, equal ones at one half, within a prompt or over all pairs.
    """
    sizes = np.bincount(codes, minlength=num_prompts)
    signs, absolute = np.sign(numbers), np.abs(numbers)
    within = _within(absolute, codes, sizes)
    over_prompts = share_below(absolute, 1 / sizes[codes])  # a sum: every prompt weighs 1
    over_pairs = share_below(absolute, np.full(len(absolute), 1 / len(absolute)))
    votes = np.bincount(codes, weights=signs * (1 + over_prompts - within), minlength=num_prompts) / sizes
    spread = np.bincount(codes, weights=signs * (1 + (num_prompts - 1) * over_pairs), minlength=num_prompts) / sizes
    variance = float(spread @ spread)
    if variance == 0:
        return 1.0
    return float(2 * ndtr(-abs(float(votes.sum())) / math.sqrt(variance)))


def _within(values: Floats, codes: Codes, sizes: Codes) -> Floats:
    """(n,) share of the values of the same prompt that lie below each, equal ones at one half."""
    # ranks of all values, shifted by prompt so far that prompts do not mix
    ranks = np.unique(values, return_inverse=True)[1] + codes * (len(values) + 1.0)
    before = np.cumsum(sizes) - sizes
    share: Floats = (share_below(ranks, np.ones(len(values))) - before[codes]) / sizes[codes]
    return share


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values for which 0.05 keeps the chance of any false alarm among them all at 5 %.

    Holm's step-down method (Scandinavian Journal of Statistics 6, 1979): the smallest is multiplied by their number m,
    the next by m - 1, and so on; none may fall below the one before it. It asks for no independence.
    """
    m, adjusted, highest = len(p_values), [0.0] * len(p_values), 0.0
    for place, at in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (m - place) * p_values[at]))
        adjusted[at] = highest
    return adjusted


def over_seeds(values: ArrayLike) -> Measured:
    """Mean over runs that differ by their seed, with its t interval; n counts runs.

    It is the interval for the next seed's mean on these pairs, and says nothing about other pairs.
    """
    numbers = np.asarray(values, dtype=np.float64)
    assert len(numbers) >= 2, "one seed has no spread"
    return mean(numbers)
