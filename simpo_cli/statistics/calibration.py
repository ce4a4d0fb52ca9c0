"""How far a model's confidence in its preferences is borne out."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from simpo_cli.statistics.measured import Groups, Measured, mean, prompt_codes, proportion

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
    """Confidence against accuracy.

    Attributes:
        brier: mean of (1 - sigmoid(margin))^2; 0.25 is the random baseline.
        error: the expected calibration error, 0..1.
        error_by_chance: about what it would be if the confidence were right: it is above 0 for any finite n.
        bins: those with pairs, least confident first.
    """

    brier: Measured
    error: Measured = field(metadata={"json": "ece"})
    error_by_chance: float = field(metadata={"json": "ece_by_chance"})
    bins: tuple[ConfidenceBin, ...]


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
