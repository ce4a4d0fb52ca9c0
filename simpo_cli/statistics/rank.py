"""Statistics of ranks: Spearman's correlation and the median, with intervals that go by prompt."""

import math
from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import ArrayLike

from simpo_cli.statistics.measured import Floats, Measured, effective_prompts, prompt_codes, student, sums_by_prompt
from simpo_cli.statistics.proportions import proportion

_MOST_RHO = 1 - 1e-12


def spearman(rewards: ArrayLike, lengths: ArrayLike, groups: Iterable[Hashable] | None = None) -> Measured | None:
    """Spearman's rank correlation of reward and length, -1..1; None under 3 values or where either never varies.

    The interval is taken on Fisher's scale, atanh(rho), with the standard error of the influence function (Croux and
    Dehon, "Influence functions of the Spearman and Kendall correlation measures", 2010, here for mid-ranks, so that
    values may be equal), summed by prompt before it is squared, and Student's quantile on effective prompts - 1.

    Args:
        rewards, lengths: (n,) one value a response, or a pair.
        groups: (n,) the prompt of each; None says that no prompt repeats.
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


def median(values: ArrayLike, groups: Iterable[Hashable] | None = None) -> Measured:
    """Median over pairs, with the interval of Woodruff (JASA 47, 1952): that of the share below it, read off as values.

    Args:
        values: (n,) any numbers.
        groups: (n,) the prompt of each pair; None says that no prompt repeats.
    """
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
    order = np.argsort(values, kind="stable")
    summed = np.concatenate([[0.0], np.cumsum(weights[order])])
    ranked = values[order]
    below, up_to = (summed[np.searchsorted(ranked, values, side=side)] for side in ("left", "right"))
    above_or_half = summed[-1] - (below + up_to) / 2
    moved: Floats = (above_or_half - float(weights @ (_grades(values) + 0.5))) / len(values)
    return moved
