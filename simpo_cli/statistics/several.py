"""Several tests at once, and several runs that differ only by their seed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from simpo_cli.statistics.measured import Measured
from simpo_cli.statistics.proportions import mean


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
