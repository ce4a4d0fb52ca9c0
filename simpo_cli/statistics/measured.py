"""A number with its interval, and what every interval needs: pairs grouped by prompt, and variances over prompts."""

import functools
import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

CONFIDENCE = 0.95

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Measured:
    """A number measured on pairs, with its interval; low and high are infinite when the pairs cannot tell."""

    value: float
    low: float
    high: float
    n: int  # pairs

    def as_json(self) -> dict[str, Any]:
        """{"value", "ci": [low, high], "n"}; JSON has no infinity, so a bound that is not finite is null."""
        value, low, high = (number if math.isfinite(number) else None for number in (self.value, self.low, self.high))
        return {"value": value, "ci": [low, high], "n": self.n}


def prompt_codes(groups: Iterable[Hashable] | None, n: int) -> tuple[Codes, int]:
    """(n,) prompts numbered from 0, and how many there are; an array, such as of hashes, takes no Python objects."""
    assert n > 0, "no pairs"
    if groups is None:
        return np.arange(n), n
    if isinstance(groups, np.ndarray):
        _, codes = np.unique(groups, return_inverse=True)
        assert codes.shape == (n,), f"{codes.shape} prompts for {n} pairs"
        return codes.astype(np.int64), int(codes.max()) + 1
    numbers: dict[Hashable, int] = {}
    codes = np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)
    assert len(codes) == n, f"{len(codes)} prompts for {n} pairs"
    return codes, len(numbers)


def sums_by_prompt(values: Floats, codes: Codes, num_prompts: int) -> Floats:
    """(num_prompts,) sum of the values of each prompt's pairs."""
    return np.bincount(codes, weights=values, minlength=num_prompts).astype(np.float64)


def effective_prompts(codes: Codes, weights: Floats | None = None) -> float:
    """How many prompts of equal weight would say as much as these: (sum w)^2 / sum w^2, w being a prompt's weight.

    Args:
        codes: (n,) the prompt of each pair, from 0.
        weights: (n,) what each pair counts for; None says that all count the same.
    """
    of_prompt = np.bincount(codes, weights=weights)
    return float(of_prompt.sum() ** 2 / (of_prompt**2).sum())


def variance_of_mean(deviations: Floats, weight: float, codes: Codes, num_prompts: int) -> float:
    """Variance of a mean over pairs that all count the same, when it is prompts that were drawn.

    The larger of two estimates. The jackknife takes nothing for granted, and knows no more of big prompts than the few
    there are: where those happen to be all right it sees no spread. The other takes the correlation r of pairs within a
    prompt (analysis of variance) to be the same in prompts of any size, and learns it from all of them:

        s^2 * ((1 - r) * sum over pairs of w^2 + r * sum over prompts of w_j^2)

    Where all prompts have equally many pairs, the jackknife is never the smaller one.

    Args:
        deviations: (n,) each pair's distance from the mean.
        weight: w, what each pair counts for.
        codes: (n,) the prompt of each pair, 0 to num_prompts - 1; at least two prompts.
    """
    sizes, n = np.bincount(codes, minlength=num_prompts), len(deviations)
    jackknife = jackknife_variance(deviations, np.full(n, weight), codes, num_prompts)
    squares = float(deviations @ deviations)
    if num_prompts == n or squares == 0:
        return jackknife
    within = squares - float((sums_by_prompt(deviations, codes, num_prompts) ** 2 / sizes).sum())
    correlation = min(1.0, max(0.0, 1 - within / (n - num_prompts) / (squares / n)))
    spread = (1 - correlation) * n + correlation * float((sizes**2).sum())
    return max(jackknife, squares / n * weight**2 * spread)


def jackknife_variance(deviations: Floats, weights: Floats, codes: Codes, num_prompts: int) -> float:
    """Variance of a weighted mean over pairs when it is prompts that were drawn: the jackknife over prompts.

    Leaving prompt j out moves the mean by e_j / (1 - w_j), w_j being its weight and e_j the sum of its weighted
    deviations; the variance is (J-1)/J times the sum of the squares. Where all prompts have equally many pairs this is
    the usual cluster-robust J/(J-1) * sum e_j^2; with a few big prompts among small ones that would be too small.

    Args:
        deviations: (n,) each pair's distance from the mean it belongs to.
        weights: (n,) what each pair counts for, summing to 1.
        codes: (n,) the prompt of each pair, 0 to num_prompts - 1; at least two prompts.
    """
    left_out = sums_by_prompt(weights * deviations, codes, num_prompts)
    moves = left_out / (1 - sums_by_prompt(weights, codes, num_prompts))
    return (num_prompts - 1) / num_prompts * float((moves**2).sum())


@functools.lru_cache(maxsize=4096)
def student(prompts: float) -> float:
    """Quantile of Student's t for a two-sided interval over so many effective prompts; two are the least there are."""
    return float(stdtrit(max(1.0, prompts - 1), 0.5 + CONFIDENCE / 2))


def as_shares(correct: ArrayLike) -> Floats:
    """(n,) as float64; anything but 0, 0.5 and 1 is a mistake of the caller."""
    shares = np.asarray(correct, dtype=np.float64)
    assert shares.ndim == 1, f"one value a pair, got shape {shares.shape}"
    assert shares.size > 0, "no pairs"
    assert bool(np.isin(shares, (0.0, 0.5, 1.0)).all()), "a pair is right (1), wrong (0) or a tie (0.5)"
    return shares
