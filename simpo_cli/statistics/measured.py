"""A number with its interval: shares of pairs and means over pairs, when it is prompts that were sampled."""

import functools
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

CONFIDENCE = 0.95

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Groups = Iterable[Hashable] | None
"""(n,) the prompt of each pair; None says that no prompt repeats."""


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


def as_json(result: Any) -> Any:
    """The JSON of a result: of a dataclass its fields in their order, by their names or those of their metadata."""
    if isinstance(result, Measured):
        return result.as_json()
    if is_dataclass(result):
        return {one.metadata.get("json", one.name): as_json(getattr(result, one.name)) for one in fields(result)}
    if isinstance(result, Mapping):
        return {key: as_json(value) for key, value in result.items()}
    return [as_json(value) for value in result] if isinstance(result, list | tuple) else result


def prompt_codes(groups: Groups, n: int) -> tuple[Codes, int]:
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

    `weights` are what each pair counts for; None says that all count the same.
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


def proportion(correct: ArrayLike, groups: Groups = None) -> Measured:
    """Share of pairs that are right, with its Wilson interval.

    Where every prompt occurs once this is Wilson's score interval (JASA 22, 1927). Where prompts repeat, n is divided
    by the design effect (at least 1) and the normal quantile becomes Student's with effective prompts - 1 degrees of
    freedom (Dean and Pagano, "Evaluating confidence interval methods for binomial proportions in clustered surveys",
    2015; see `effective_prompts`).
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


def mean(values: ArrayLike, groups: Groups = None) -> Measured:
    """Mean over pairs, with a t interval that takes prompts, not pairs, as the sample (see `variance_of_mean`).

    Without repeats this is the ordinary t interval. One prompt gives no interval: low and high are infinite.
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


def median(values: ArrayLike, groups: Groups = None) -> Measured:
    """Median over pairs, with the interval of Woodruff (JASA 47, 1952): that of the share below, read off as values."""
    numbers = np.asarray(values, dtype=np.float64)
    middle = float(np.median(numbers))
    if len(numbers) == 1 or not np.isfinite(numbers).all():
        return Measured(middle, -math.inf, math.inf, len(numbers))
    # the share of pairs below the median, pairs at it counting one half
    below = proportion((np.sign(middle - numbers) + 1) / 2, groups)
    if below.low <= 0 or below.high >= 1:
        return Measured(middle, -math.inf, math.inf, len(numbers))
    low, high = np.quantile(numbers, [0.5 - (below.value - below.low), 0.5 + (below.high - below.value)]).tolist()
    return Measured(middle, min(low, middle), max(high, middle), len(numbers))


def share_below(values: Floats, weights: Floats) -> Floats:
    """(n,) sum of the weights of what lies below each value, equal ones at one half."""
    order = np.argsort(values, kind="stable")
    summed = np.concatenate([[0.0], np.cumsum(weights[order])])
    ranked = values[order]
    below, up_to = (summed[np.searchsorted(ranked, values, side=side)] for side in ("left", "right"))
    share: Floats = (below + up_to) / 2
    return share
