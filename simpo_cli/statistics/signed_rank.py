"""Wilcoxon's signed-rank test, and what takes its place where prompts repeat."""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from simpo_cli.statistics.measured import Codes, Floats, prompt_codes
from simpo_cli.statistics.paired import sign_flip_p_value

_MOST_EXACT = 50


@dataclass(frozen=True, slots=True)
class RankTest:
    """Whether changes lie around zero: the p-value, two-sided, and what it was taken with."""

    p_value: float
    test: Literal["wilcoxon", "datta-satten"]


def signed_rank_test(changes: ArrayLike, groups: Iterable[Hashable] | None = None) -> RankTest:
    """Test that changes are as likely up as down, big ones like small ones.

    If every prompt occurs once: Wilcoxon's signed-rank test (Biometrics Bulletin 1, 1945), changes of 0 left out, exact
    up to 50 changes and by the normal distribution above. Else the test of Datta and Satten ("A signed-rank test for
    clustered data", Biometrics 64, 2008), in which every prompt has one vote however many pairs it has; it goes by the
    normal distribution, so under 30 prompts it is rough.

    Args:
        changes: (n,) of each pair.
        groups: (n,) the prompt of each pair; None says that no prompt repeats.
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
    over_prompts = _share_below(absolute, 1 / sizes[codes])  # a sum: every prompt weighs 1
    over_pairs = _share_below(absolute, np.full(len(absolute), 1 / len(absolute)))
    votes = np.bincount(codes, weights=signs * (1 + over_prompts - within), minlength=num_prompts) / sizes
    spread = np.bincount(codes, weights=signs * (1 + (num_prompts - 1) * over_pairs), minlength=num_prompts) / sizes
    variance = float(spread @ spread)
    if variance == 0:
        return 1.0
    return float(2 * ndtr(-abs(float(votes.sum())) / math.sqrt(variance)))


def _share_below(values: Floats, weights: Floats) -> Floats:
    """(n,) sum of the weights of what lies below each value, equal ones at one half."""
    order = np.argsort(values, kind="stable")
    summed = np.concatenate([[0.0], np.cumsum(weights[order])])
    ranked = values[order]
    below, up_to = (summed[np.searchsorted(ranked, values, side=side)] for side in ("left", "right"))
    share: Floats = (below + up_to) / 2
    return share


def _within(values: Floats, codes: Codes, sizes: Codes) -> Floats:
    """(n,) share of the values of the same prompt that lie below each, equal ones at one half."""
    # ranks of all values, shifted by prompt so far that prompts do not mix
    ranks = np.unique(values, return_inverse=True)[1] + codes * (len(values) + 1.0)
    before = np.cumsum(sizes) - sizes
    share: Floats = (_share_below(ranks, np.ones(len(values))) - before[codes]) / sizes[codes]
    return share
