"""Two arms compared over the same prompts and the same seeds, when both were drawn: one test, one interval.

An interval over prompts alone is that of these three trainings, and the next seed may end elsewhere; one over seeds
alone says nothing of other prompts. Here both count, so "better" is said of the setting and not of the draw.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtr, stdtrit

from simpo_cli.statistics.measured import CONFIDENCE, Groups, Measured, prompt_codes, sums_by_prompt
from simpo_cli.statistics.paired_tests import POWER


@dataclass(frozen=True, slots=True)
class CrossedDifference:
    """What the second arm has more than the first."""

    difference: Measured  # n counts units (pairs or answers) of one seed
    p_value: float  # two-sided
    prompts: int
    seeds: int
    degrees_of_freedom: float
    smallest_effect: float  # the smallest difference that four out of five such comparisons would show


def crossed_difference(first: ArrayLike, second: ArrayLike, groups: Groups = None) -> CrossedDifference:
    """Mean difference of two arms over prompts and seeds, both taken as random, with its t interval.

    The differences d of prompt i and seed s are a two-way layout without repeats, d = mean + a_i + b_s + e_is
    (Cornfield and Tukey, Annals of Mathematical Statistics 27, 1956), and the mean over both varies by

        (MS_prompts + MS_seeds - MS_rest) / (prompts * seeds)

    taken as no less than either mean square alone would give, with Satterthwaite's degrees of freedom (Biometrics
    Bulletin 2, 1946). With three seeds that differ, few degrees are left and the interval is wide: that is what three
    seeds can say.

    Args:
        first, second: (seeds, n) values of each unit, such as 1 for a pair that is ranked rightly; at least two seeds.
        groups: (n,) the prompt of each unit; at least two prompts.
    """
    gains = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    seeds, n = gains.shape
    codes, prompts = prompt_codes(groups, n)
    assert seeds >= 2, "one seed has no spread"
    assert prompts >= 2, "one prompt has no spread"
    # (seeds, prompts) sums, scaled so that their mean is that of the units
    layout = np.stack([sums_by_prompt(row, codes, prompts) for row in gains]) * (prompts / n)
    mean = float(layout.mean())
    by_prompt, by_seed = layout.mean(axis=0), layout.mean(axis=1)
    rest = layout - by_prompt - by_seed[:, None] + mean
    free = np.array([prompts - 1, seeds - 1, (prompts - 1) * (seeds - 1)], dtype=np.float64)
    sums = [seeds * ((by_prompt - mean) ** 2).sum(), prompts * ((by_seed - mean) ** 2).sum(), (rest**2).sum()]
    of_prompts, of_seeds, of_rest = (np.array(sums) / free).tolist()
    both = of_prompts + of_seeds - of_rest
    if both > max(of_prompts, of_seeds):
        spread = both
        degrees = both**2 / float((np.array([of_prompts, of_seeds, of_rest]) ** 2 / free).sum())
    else:
        spread, degrees = max((of_prompts, float(free[0])), (of_seeds, float(free[1])))
    error = math.sqrt(spread / (prompts * seeds))
    quantile = float(stdtrit(degrees, 0.5 + CONFIDENCE / 2))
    p_value = 1.0 if error == 0 else 2 * float(stdtr(degrees, -abs(mean) / error))
    return CrossedDifference(
        difference=Measured(mean, mean - quantile * error, mean + quantile * error, n),
        p_value=p_value if mean else 1.0,
        prompts=prompts,
        seeds=seeds,
        degrees_of_freedom=degrees,
        smallest_effect=(quantile + float(ndtri(POWER))) * error,
    )
