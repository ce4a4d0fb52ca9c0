"""Intervals and tests for numbers measured on preference pairs: numpy and scipy only, no torch.

Pairs that share a prompt are not independent, and an interval that takes them for independent is too narrow. So every
function takes `groups`, the prompt of each pair, and treats the prompt as the thing that was sampled. All intervals are
two-sided and hold 95 %.
"""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
MIN_STRATUM_PAIRS = 10

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


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same pairs. Wins are pairs that only the tuned model got right, losses the reverse."""

    difference: Measured  # accuracy of the tuned model less that of the base model, -1..1
    p_value: float  # two-sided
    test: Literal["mcnemar-exact", "sign-flip-by-prompt"]
    wins: int
    losses: int
    ties: int  # pairs on which both did equally well; they say nothing about the difference


class LengthStrata(TypedDict):
    """Accuracy where the chosen response is the longer one, where it is the shorter one, and the mean of the two."""

    chosen_longer: Measured | None
    chosen_shorter: Measured | None
    balanced: Measured | None


def proportion(correct: ArrayLike, groups: Iterable[Hashable] | None = None) -> Measured:
    """Share of pairs that are right, with its Wilson interval.

    Where every prompt occurs once this is Wilson's score interval (JASA 22, 1927). Where prompts repeat, n is divided
    by the design effect (at least 1) and the normal quantile becomes Student's with prompts - 1 degrees of freedom
    (Dean and Pagano, "Evaluating confidence interval methods for binomial proportions in clustered surveys", 2015).

    Args:
        correct: (n,) 1 right, 0 wrong, 0.5 for a tie.
        groups: (n,) the prompt of each pair; None says that no prompt repeats.
    """
    right = _shares(correct)
    codes, num_prompts = _prompt_codes(groups, len(right))
    value = float(right.mean())
    if num_prompts == len(right):
        low, high = _wilson(value, len(right), float(stats.norm.ppf(0.5 + CONFIDENCE / 2)))
        return Measured(value, low, high, len(right))
    if num_prompts == 1:  # however many pairs: one prompt says nothing about the next
        return Measured(value, 0.0, 1.0, len(right))
    weights = np.full(len(right), 1 / len(right))
    effective_n = min(_effective_n(value, right - value, weights, codes, num_prompts), len(right))
    low, high = _wilson(value, effective_n, _student(num_prompts))
    return Measured(value, low, high, len(right))


def mean(values: ArrayLike, groups: Iterable[Hashable] | None = None) -> Measured:
    """Mean over pairs, with a t interval that takes prompts, not pairs, as the sample (see `_variance`).

    Without repeats this is the ordinary t interval. One prompt gives no interval: low and high are infinite.

    Args:
        values: (n,) any numbers.
        groups: (n,) the prompt of each pair; None says that no prompt repeats.
    """
    numbers = np.asarray(values, dtype=np.float64)
    codes, num_prompts = _prompt_codes(groups, len(numbers))
    value = float(numbers.mean())
    if num_prompts == 1:
        return Measured(value, -math.inf, math.inf, len(numbers))
    weights = np.full(len(numbers), 1 / len(numbers))
    half = _student(num_prompts) * math.sqrt(_variance(numbers - value, weights, codes, num_prompts))
    return Measured(value, value - half, value + half, len(numbers))


def compare_accuracy(
    base_correct: ArrayLike, tuned_correct: ArrayLike, groups: Iterable[Hashable] | None = None
) -> Comparison:
    """Base against tuned on the same pairs: is the difference in accuracy more than chance?

    If every prompt occurs once: McNemar's exact test, that is, a fair coin on the pairs that only one model got right.
    Else the sign-flip test by prompt: if the models were equal, each prompt's difference could as well have had the
    other sign. Its p-value is exact (all 2^prompts flips, summed by value), so there is no seed.

    Args:
        base_correct, tuned_correct: (n,) 1 right, 0 wrong, 0.5 for a tie, the same pairs in the same order.
        groups: (n,) the prompt of each pair; None says that no prompt repeats.
    """
    base, tuned = _shares(base_correct), _shares(tuned_correct)
    assert base.shape == tuned.shape, f"{len(base)} pairs of the base model, {len(tuned)} of the tuned one"
    gains = tuned - base
    codes, num_prompts = _prompt_codes(groups, len(gains))
    wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
    test: Literal["mcnemar-exact", "sign-flip-by-prompt"]
    if num_prompts == len(gains):
        test = "mcnemar-exact"
        p_value = float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    else:
        test = "sign-flip-by-prompt"
        p_value = _sign_flip_p_value(_sums_by_prompt(gains, codes, num_prompts))
    return Comparison(
        difference=_paired_difference(gains, codes, num_prompts),
        p_value=p_value,
        test=test,
        wins=wins,
        losses=losses,
        ties=len(gains) - wins - losses,
    )


def length_strata(
    correct: ArrayLike,
    chosen_lengths: ArrayLike,
    rejected_lengths: ArrayLike,
    groups: Iterable[Hashable] | None = None,
) -> LengthStrata:
    """Accuracy freed of length: a model that only likes long (or short) responses has a balanced accuracy of one half.

    Pairs of equal length are in neither stratum. A stratum of under 10 pairs is None, and so is then the balanced mean,
    whose interval allows for prompts that have pairs in both strata.

    Args:
        correct: (n,) 1 right, 0 wrong, 0.5 for a tie.
        chosen_lengths, rejected_lengths: (n,) scored tokens of each response.
        groups: (n,) the prompt of each pair; None says that no prompt repeats.
    """
    right = _shares(correct)
    longer_by = np.asarray(chosen_lengths, dtype=np.float64) - np.asarray(rejected_lengths, dtype=np.float64)
    codes, _ = _prompt_codes(groups, len(right))
    sides = [longer_by > 0, longer_by < 0]
    longer, shorter = (
        proportion(right[side], codes[side].tolist()) if side.sum() >= MIN_STRATUM_PAIRS else None for side in sides
    )
    balanced = None
    if longer is not None and shorter is not None:
        value = (longer.value + shorter.value) / 2
        used = sides[0] | sides[1]
        weights = np.where(sides[0], 0.5 / longer.n, 0.5 / shorter.n)[used]
        deviations = (right - np.where(sides[0], longer.value, shorter.value))[used]
        used_codes, num_prompts = _prompt_codes(codes[used].tolist(), int(used.sum()))
        low, high = 0.0, 1.0
        if num_prompts > 1:
            effective_n = _effective_n(value, deviations, weights, used_codes, num_prompts)
            low, high = _wilson(value, effective_n, _student(num_prompts))
        balanced = Measured(value, low, high, int(used.sum()))
    return {"chosen_longer": longer, "chosen_shorter": shorter, "balanced": balanced}


def balanced_difference(
    base_correct: ArrayLike,
    tuned_correct: ArrayLike,
    chosen_lengths: ArrayLike,
    rejected_lengths: ArrayLike,
    groups: Iterable[Hashable] | None = None,
) -> Measured | None:
    """What length-balanced accuracy gained: the mean of the gains where chosen is longer and where it is shorter.

    The interval goes by prompt and pads each stratum as `_paired_difference` pads all pairs. None where
    `length_strata` has no balanced accuracy.

    Args:
        base_correct, tuned_correct: (n,) 1 right, 0 wrong, 0.5 for a tie, the same pairs in the same order.
        chosen_lengths, rejected_lengths: (n,) scored tokens of each response.
        groups: (n,) the prompt of each pair; None says that no prompt repeats.
    """
    gains = _shares(tuned_correct) - _shares(base_correct)
    longer_by = np.asarray(chosen_lengths, dtype=np.float64) - np.asarray(rejected_lengths, dtype=np.float64)
    codes, _ = _prompt_codes(groups, len(gains))
    sides = [longer_by > 0, longer_by < 0]
    if min(side.sum() for side in sides) < MIN_STRATUM_PAIRS:
        return None
    value = float(np.mean([gains[side].mean() for side in sides]))
    used = sides[0] | sides[1]
    used_codes, num_prompts = _prompt_codes(codes[used].tolist(), int(used.sum()))
    if num_prompts == 1:
        return Measured(value, -1.0, 1.0, int(used.sum()))
    deviations, weights, added = np.zeros(len(gains)), np.zeros(len(gains)), 0.0
    for side in sides:
        padded_n = int(side.sum()) + 2
        centre = float(gains[side].sum()) / padded_n
        deviations[side], weights[side] = gains[side] - centre, 0.5 / padded_n
        added += 0.25 * _added_variance(centre, padded_n)
    variance = _variance(deviations[used], weights[used], used_codes, num_prompts) + added
    half = _student(num_prompts) * math.sqrt(variance)
    return Measured(value, max(-1.0, value - half), min(1.0, value + half), int(used.sum()))


def spearman(rewards: ArrayLike, lengths: ArrayLike) -> float | None:
    """Spearman's rank correlation of reward and length, -1..1; None under 3 responses or where either never varies."""
    scores, tokens = np.asarray(rewards, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    if len(scores) < 3 or np.ptp(scores) == 0 or np.ptp(tokens) == 0:
        return None
    return float(stats.spearmanr(scores, tokens).statistic)


def longer_wins(
    chosen_lengths: ArrayLike, rejected_lengths: ArrayLike, groups: Iterable[Hashable] | None = None
) -> Measured:
    """Accuracy of the rule "the longer response is the better one", equal lengths counting one half."""
    longer_by = np.asarray(chosen_lengths, dtype=np.float64) - np.asarray(rejected_lengths, dtype=np.float64)
    return proportion((np.sign(longer_by) + 1) / 2, groups)


def _shares(correct: ArrayLike) -> Floats:
    """(n,) as float64; anything but 0, 0.5 and 1 is a mistake of the caller."""
    shares = np.asarray(correct, dtype=np.float64)
    assert shares.ndim == 1, f"one value a pair, got shape {shares.shape}"
    assert shares.size > 0, "no pairs"
    assert bool(np.isin(shares, (0.0, 0.5, 1.0)).all()), "a pair is right (1), wrong (0) or a tie (0.5)"
    return shares


def _prompt_codes(groups: Iterable[Hashable] | None, n: int) -> tuple[Codes, int]:
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


def _sums_by_prompt(values: Floats, codes: Codes, num_prompts: int) -> Floats:
    return np.bincount(codes, weights=values, minlength=num_prompts).astype(np.float64)


def _variance(deviations: Floats, weights: Floats, codes: Codes, num_prompts: int) -> float:
    """Variance of a weighted mean over pairs when it is prompts that were drawn: the jackknife over prompts.

    Leaving prompt j out moves the mean by e_j / (1 - w_j), w_j being its weight and e_j the sum of its weighted
    deviations; the variance is (J-1)/J times the sum of the squares. Where all prompts have equally many pairs this is
    the usual cluster-robust J/(J-1) * sum e_j^2; with a few big prompts among small ones that would be too small.

    Args:
        deviations: (n,) each pair's distance from the mean it belongs to.
        weights: (n,) what each pair counts for, summing to 1.
        codes: (n,) the prompt of each pair, 0 to num_prompts - 1; at least two prompts.
    """
    left_out = _sums_by_prompt(weights * deviations, codes, num_prompts)
    moves = left_out / (1 - _sums_by_prompt(weights, codes, num_prompts))
    return (num_prompts - 1) / num_prompts * float((moves**2).sum())


def _effective_n(value: float, deviations: Floats, weights: Floats, codes: Codes, num_prompts: int) -> float:
    """How many independent pairs would give a share as sure as this one: n / design effect.

    The estimate is shrunk, with the weight of one pair, towards "pairs of a prompt are all right or all wrong
    together". When nearly all pairs are right there is nothing left to estimate the design effect from, and this is
    the careful guess; otherwise it changes little.

    Args:
        value: the share, 0..1.
        deviations: (n,) each pair's distance from the mean it belongs to.
        weights: (n,) what each pair counts for, summing to 1.
    """
    prior_weight = 1 / len(weights)
    variance_if_all_agree = float((_sums_by_prompt(weights, codes, num_prompts) ** 2).sum())
    variance = _variance(deviations, weights, codes, num_prompts)
    return (value * (1 - value) + prior_weight) / (variance + prior_weight * variance_if_all_agree)


def _wilson(value: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval for a share: all p with |value - p| <= quantile * sqrt(p (1 - p) / n)."""
    shrink = 1 + quantile**2 / n
    centre = (value + quantile**2 / (2 * n)) / shrink
    half = quantile / shrink * math.sqrt(value * (1 - value) / n + quantile**2 / (4 * n**2))
    # rounding must not push a bound past the value (or past 0 and 1)
    return max(0.0, min(centre - half, value)), min(1.0, max(centre + half, value))


def _student(num_prompts: int) -> float:
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, num_prompts - 1))


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
    padded_n = n + 2
    centre = float(gains.sum()) / padded_n
    variance = _variance(gains - centre, np.full(n, 1 / padded_n), codes, num_prompts)
    variance += _added_variance(centre, padded_n)
    half = _student(num_prompts) * math.sqrt(variance)
    return Measured(value, max(-1.0, min(centre - half, value)), min(1.0, max(centre + half, value)), n)


def _added_variance(centre: float, padded_n: int) -> float:
    """What half a pair of each outcome adds to the variance of a mean gain."""
    return 0.5 * ((1 - centre) ** 2 + (1 + centre) ** 2 + 2 * centre**2) / padded_n**2


def _sign_flip_p_value(gains: Floats) -> float:
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
