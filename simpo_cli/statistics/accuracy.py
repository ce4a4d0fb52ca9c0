"""What stands beside accuracy: what length explains of it, and how far the model's confidence is borne out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from simpo_cli.statistics.measured import (
    Codes,
    Floats,
    Groups,
    Measured,
    as_shares,
    effective_prompts,
    jackknife_variance,
    mean,
    prompt_codes,
    proportion,
    share_below,
    student,
    sums_by_prompt,
)
from simpo_cli.statistics.paired_tests import added_variance

MIN_STRATUM_PAIRS = 10
NUM_BUCKETS = 5


def length_strata(correct: ArrayLike, longer_by: Codes, groups: Groups = None) -> dict[str, Measured | None]:
    """Accuracy where chosen is the longer response, where it is the shorter one, and the mean of the two, `balanced`.

    A model that only likes long (or short) responses has a balanced accuracy of one half. Pairs of equal length are in
    neither stratum. A stratum of under 10 pairs is None, and so is then the balanced mean, whose interval is made of
    those of the strata (see `_mean_of_both`).
    """
    right = as_shares(correct)
    codes, _ = prompt_codes(groups, len(right))
    sides = [longer_by > 0, longer_by < 0]
    longer, shorter = (
        proportion(right[side], codes[side].tolist()) if side.sum() >= MIN_STRATUM_PAIRS else None for side in sides
    )
    balanced = _mean_of_both(right, codes, sides, [longer, shorter]) if longer and shorter else None
    return {"chosen_longer": longer, "chosen_shorter": shorter, "balanced": balanced}


def _mean_of_both(right: Floats, codes: Codes, sides: Sequence[NDArray[np.bool_]], strata: list[Measured]) -> Measured:
    """The mean of two shares, with the interval of Zou and Donner (Statistics in Medicine 27, 2008).

        low = mean - sqrt((p - low_p)^2 + (q - low_q)^2 + 2 * correlation * (p - low_p) * (q - low_q)) / 2

    and high the same with the upper limits. It keeps the Wilson limits of the strata, which matter where a model that
    goes by length alone is right in nearly all pairs of one and nearly none of the other. The correlation comes from
    prompts that have pairs in both.
    `sides` says of each pair whether it is in the first stratum, and in the second; `strata` are their shares.
    """
    num_prompts = int(codes.max()) + 1
    first, second = (
        sums_by_prompt((right[side] - stratum.value) / stratum.n, codes[side], num_prompts)
        for side, stratum in zip(sides, strata, strict=True)
    )
    scale = math.sqrt(float(first @ first) * float(second @ second))
    correlation = float(first @ second) / scale if scale else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 + other**2 + 2 * correlation * one * other)) / 2

    p, q = strata
    value = (p.value + q.value) / 2
    if num_prompts == 1:
        return Measured(value, 0.0, 1.0, p.n + q.n)
    low, high = value - reach(p.value - p.low, q.value - q.low), value + reach(p.high - p.value, q.high - q.value)
    return Measured(value, max(0.0, low), min(1.0, high), p.n + q.n)


def balanced_difference(
    base_correct: ArrayLike, tuned_correct: ArrayLike, longer_by: Codes, groups: Groups = None
) -> Measured | None:
    """What length-balanced accuracy gained: the mean of the gains where chosen is longer and where it is shorter.

    The interval goes by prompt and pads each stratum as `_paired_difference` pads all pairs. None where
    `length_strata` has no balanced accuracy.
    """
    gains = as_shares(tuned_correct) - as_shares(base_correct)
    codes, _ = prompt_codes(groups, len(gains))
    sides = [longer_by > 0, longer_by < 0]
    if min(side.sum() for side in sides) < MIN_STRATUM_PAIRS:
        return None
    value = float(np.mean([gains[side].mean() for side in sides]))
    used = sides[0] | sides[1]
    used_codes, num_prompts = prompt_codes(codes[used].tolist(), int(used.sum()))
    if num_prompts == 1:
        return Measured(value, -1.0, 1.0, int(used.sum()))
    deviations, weights, added = np.zeros(len(gains)), np.zeros(len(gains)), 0.0
    for side in sides:
        padded_n = int(side.sum()) + 2
        centre = float(gains[side].sum()) / padded_n
        deviations[side], weights[side] = gains[side] - centre, 0.5 / padded_n
        added += 0.25 * added_variance(centre, padded_n)
    variance = jackknife_variance(deviations[used], weights[used], used_codes, num_prompts) + added
    half = student(effective_prompts(used_codes, weights[used])) * math.sqrt(variance)
    return Measured(value, max(-1.0, value - half), min(1.0, value + half), int(used.sum()))


def longer_wins(longer_by: Codes, groups: Groups = None) -> Measured:
    """Accuracy of the rule "the longer response is the better one", equal lengths counting one half."""
    return proportion((np.sign(longer_by) + 1) / 2, groups)


@dataclass(frozen=True, slots=True)
class LengthBucket:
    """Pairs whose lengths differ by like amounts."""

    low: int = field(metadata={"json": "from"})  # chosen minus rejected, in tokens, both included
    high: int = field(metadata={"json": "to"})  # the same
    pairs: int  # how many
    accuracy: Measured | None  # on them; None under 10 pairs


def length_buckets(correct: ArrayLike, longer_by: Codes, groups: Groups = None) -> list[LengthBucket]:
    """Accuracy by how much longer the chosen response is: five buckets of about equally many pairs, shortest first.

    Pairs with the same difference are never parted, so there may be fewer buckets, and they may be uneven.
    """
    right = as_shares(correct)
    codes, _ = prompt_codes(groups, len(right))
    inner = [(share + 1) / NUM_BUCKETS for share in range(NUM_BUCKETS - 1)]
    edges = np.unique(np.quantile(longer_by, inner, method="inverted_cdf"))
    bucket_of = np.searchsorted(edges, longer_by)
    buckets = []
    for bucket in np.unique(bucket_of):
        at = bucket_of == bucket
        accuracy = proportion(right[at], codes[at]) if at.sum() >= MIN_STRATUM_PAIRS else None
        buckets.append(LengthBucket(int(longer_by[at].min()), int(longer_by[at].max()), int(at.sum()), accuracy))
    return buckets


_MOST_RHO = 1 - 1e-12


def spearman(rewards: ArrayLike, lengths: ArrayLike, groups: Groups = None) -> Measured | None:
    """Spearman's rank correlation of reward and length, -1..1; None under 3 values or where either never varies.

    The interval is taken on Fisher's scale, atanh(rho), with the standard error of the influence function (Croux and
    Dehon, "Influence functions of the Spearman and Kendall correlation measures", 2010, here for mid-ranks, so that
    values may be equal), summed by prompt before it is squared, and Student's quantile on effective prompts - 1.

    Args:
        rewards, lengths: (n,) one value a response, or a pair.
    """
    scores, tokens = np.asarray(rewards, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    n = len(scores)
    if n < 3 or np.ptp(scores) == 0 or np.ptp(tokens) == 0:
        return None
    codes, num_prompts = prompt_codes(groups, n)
    u, v = _grades(scores), _grades(tokens)
    spread_u, spread_v, shared = float(u @ u) / n, float(v @ v) / n, float(u @ v) / n
    rho = shared / math.sqrt(spread_u * spread_v)
    if num_prompts == 1:
        return Measured(rho, -1.0, 1.0, n)
    # what one more value adds to each of the three means, through its own grade and through the grades of the others
    of_shared = u * v - shared + _moved(scores, v) + _moved(tokens, u)
    of_u = u * u - spread_u + 2 * _moved(scores, u)
    of_v = v * v - spread_v + 2 * _moved(tokens, v)
    influence = of_shared / math.sqrt(spread_u * spread_v) - rho / 2 * (of_u / spread_u + of_v / spread_v)
    by_prompt = sums_by_prompt(influence / n, codes, num_prompts)
    error = math.sqrt(num_prompts / (num_prompts - 1) * float(by_prompt @ by_prompt))
    inside = min(max(rho, -_MOST_RHO), _MOST_RHO)
    half = student(effective_prompts(codes)) * error / (1 - inside**2)
    centre = math.atanh(inside)
    return Measured(rho, min(rho, math.tanh(centre - half)), max(rho, math.tanh(centre + half)), n)


def _grades(values: Floats) -> Floats:
    """(n,) share of values below each, equal ones at one half, less one half: mid-ranks around 0."""
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    grades: Floats = (np.cumsum(counts) - counts / 2)[codes] / len(values) - 0.5
    return grades


def _moved(values: Floats, weights: Floats) -> Floats:
    """(n,) how one more value at x_i would move the mean of weight times grade, through the grades of all.

    It raises the grade of what lies above it by 1 and of its equals by one half, over what that grade is:
    mean over k of w_k * ([x_i < x_k] + [x_i = x_k] / 2 - F(x_k)).
    """
    above_or_half = np.cumsum(weights[np.argsort(values, kind="stable")])[-1] - share_below(values, weights)
    moved: Floats = (above_or_half - float(weights @ (_grades(values) + 0.5))) / len(values)
    return moved


# How far a model's confidence in its preferences is borne out

NUM_BINS = 10


@dataclass(frozen=True, slots=True)
class ConfidenceBin:
    """Pairs of like confidence: its bounds, its mean, and how often the model was right."""

    low: float = field(metadata={"json": "from"})
    high: float = field(metadata={"json": "to"})
    confidence: float
    accuracy: Measured


@dataclass(frozen=True, slots=True)
class Calibration:
    """Confidence against accuracy; `error_by_chance` is about what the error would be if the confidence were right."""

    brier: Measured  # mean of (1 - sigmoid(margin))^2; 0.25 is the random baseline
    error: Measured = field(metadata={"json": "ece"})  # the expected calibration error, 0..1
    error_by_chance: float = field(metadata={"json": "ece_by_chance"})  # above 0 for any finite n
    bins: tuple[ConfidenceBin, ...]  # those with pairs, least confident first


def calibration(margins: ArrayLike, groups: Groups = None) -> Calibration:
    """Read sigmoid(margin) as the probability that the chosen response is the preferred one, and compare.

        confidence c = max(sigmoid(margin), 1 - sigmoid(margin)), right if margin > 0, a tie is half right
        expected calibration error = sum over ten bins of c (0.5 to 1) of pairs in it / n * |accuracy - mean of c|

    (Naeini, Cooper and Hauskrecht, AAAI 2015; Brier, Monthly Weather Review 78, 1950.) The interval of the error takes
    the sign of each bin's gap as known, which it is where gaps are clear of chance.

    Args:
        margins: (n,) reward of chosen less that of rejected.
    """
    numbers = np.asarray(margins, dtype=np.float64)
    codes, _ = prompt_codes(groups, len(numbers))
    likely = special.expit(numbers)
    confidence = np.maximum(likely, special.expit(-numbers))
    right = np.where(numbers > 0, 1.0, np.where(numbers == 0, 0.5, 0.0))
    bin_of = np.minimum((confidence - 0.5) / 0.5 * NUM_BINS, NUM_BINS - 1).astype(np.int64)
    sides, by_chance, bins = np.zeros(len(numbers)), 0.0, []
    for number in np.unique(bin_of):
        at = bin_of == number
        of_bin = confidence[at]
        sides[at] = np.sign(right[at].mean() - of_bin.mean())
        by_chance += math.sqrt(2 / math.pi * float((of_bin * (1 - of_bin)).sum()))  # mean of |normal|
        low, high = (0.5 + 0.5 * (number + step) / NUM_BINS for step in (0, 1))
        bins.append(ConfidenceBin(low, high, float(of_bin.mean()), proportion(right[at], codes[at])))
    error = mean(sides * (right - confidence), codes)
    return Calibration(
        brier=mean(np.square(special.expit(-numbers)), codes),
        error=Measured(error.value, max(0.0, error.low), min(1.0, error.high), error.n),
        error_by_chance=by_chance / len(numbers),
        bins=tuple(bins),
    )
