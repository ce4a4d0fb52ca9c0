"""Shares of pairs and means over pairs."""

import math
from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from simpo_cli.statistics.measured import (
    CONFIDENCE,
    Codes,
    Floats,
    Measured,
    as_shares,
    effective_prompts,
    prompt_codes,
    student,
    variance_of_mean,
)


def proportion(correct: ArrayLike, groups: Iterable[Hashable] | None = None) -> Measured:
    """Share of pairs that are right, with its Wilson interval.

    Where every prompt occurs once this is Wilson's score interval (JASA 22, 1927). Where prompts repeat, n is divided
    by the design effect (at least 1) and the normal quantile becomes Student's with effective prompts - 1 degrees of
    freedom (Dean and Pagano, "Evaluating confidence interval methods for binomial proportions in clustered surveys",
    2015; see `effective_prompts`).

    Args:
        correct: (n,) 1 right, 0 wrong, 0.5 for a tie.
        groups: (n,) the prompt of each pair; None says that no prompt repeats.
    """
    right = as_shares(correct)
    codes, num_prompts = prompt_codes(groups, len(right))
    value = float(right.mean())
    if num_prompts == len(right):
        low, high = wilson(value, len(right), float(ndtri(0.5 + CONFIDENCE / 2)))
        return Measured(value, low, high, len(right))
    if num_prompts == 1:  # however many pairs: one prompt says nothing about the next
        return Measured(value, 0.0, 1.0, len(right))
    effective_n = min(_effective_pairs(value, right - value, codes, num_prompts), len(right))
    low, high = wilson(value, effective_n, student(effective_prompts(codes)))
    return Measured(value, low, high, len(right))


def mean(values: ArrayLike, groups: Iterable[Hashable] | None = None) -> Measured:
    """Mean over pairs, with a t interval that takes prompts, not pairs, as the sample (see `variance_of_mean`).

    Without repeats this is the ordinary t interval. One prompt gives no interval: low and high are infinite.

    Args:
        values: (n,) any numbers.
        groups: (n,) the prompt of each pair; None says that no prompt repeats.
    """
    numbers = np.asarray(values, dtype=np.float64)
    codes, num_prompts = prompt_codes(groups, len(numbers))
    value = float(numbers.mean())
    if num_prompts == 1:
        return Measured(value, -math.inf, math.inf, len(numbers))
    variance = variance_of_mean(numbers - value, 1 / len(numbers), codes, num_prompts)
    half = student(effective_prompts(codes)) * math.sqrt(variance)
    return Measured(value, value - half, value + half, len(numbers))


def _effective_pairs(value: float, deviations: Floats, codes: Codes, num_prompts: int) -> float:
    """How many independent pairs would give a share as sure as this one: n / design effect.

    The estimate is shrunk, with the weight of one pair, towards "pairs of a prompt are all right or all wrong
    together". When nearly all pairs are right there is nothing left to estimate the design effect from, and this is
    the careful guess; otherwise it changes little.

    Args:
        value: the share, 0..1.
        deviations: (n,) each pair's distance from the share.
    """
    weight = 1 / len(deviations)
    variance = variance_of_mean(deviations, weight, codes, num_prompts)
    return (value * (1 - value) + weight) / (variance + weight / effective_prompts(codes))


def wilson(value: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval for a share: all p with |value - p| <= quantile * sqrt(p (1 - p) / n)."""
    shrink = 1 + quantile**2 / n
    centre = (value + quantile**2 / (2 * n)) / shrink
    half = quantile / shrink * math.sqrt(value * (1 - value) / n + quantile**2 / (4 * n**2))
    # rounding must not push a bound past the value (or past 0 and 1)
    return max(0.0, min(centre - half, value)), min(1.0, max(centre + half, value))
