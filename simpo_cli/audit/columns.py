"""Columns of numbers, a row for each pair: collected batch by batch, and described."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class RowList:
    """Collects rows of one shape and type.

    Args:
        dtype: of the numbers.
        shape: of one row; () for a number.
    """

    def __init__(self, dtype: Any, shape: Sequence[int] = ()) -> None:
        self._dtype, self._shape = dtype, shape
        self._numbers = bytearray()

    def add(self, rows: ArrayLike) -> None:
        """Take in more rows: (k, *shape)."""
        self._numbers += np.ascontiguousarray(rows, dtype=self._dtype).reshape(-1).view(np.uint8).data

    @property
    def rows(self) -> NDArray[Any]:
        """(n, *shape) all of them; none can be added any more."""
        return np.frombuffer(self._numbers, dtype=self._dtype).reshape(-1, *self._shape)


NUM_BINS = 20

Lengths = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts between edges.

    Attributes:
        hist: (bins,) how many values lie in each bin.
        bin_edges: (bins + 1,) the last bin includes its upper edge.
    """

    hist: tuple[int, ...]
    bin_edges: tuple[float, ...]


def histogram(
    values: Lengths | NDArray[np.float64], *, low: float | None = None, high: float | None = None
) -> Histogram:
    """Counts in bins of equal width.

    Args:
        values: (n,) lengths, differences or margins, at least one.
        low, high: the outermost edges; what lies beyond them counts in the outermost bins. None takes the extremes.
    """
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    if high <= low:
        return Histogram((len(values),), (low, low))
    hist, edges = np.histogram(np.clip(values, low, high), bins=NUM_BINS, range=(low, high))
    return Histogram(tuple(hist.tolist()), tuple(edges.tolist()))


def describe(values: Lengths) -> dict[str, Any]:
    """The numbers of one column of the document.

    Args:
        values: (n,) lengths or their differences, at least one.

    Returns:
        min, max, mean, median, std (of these values, divided by n), p5, p95 (linear between values) and the histogram.
    """
    p5, median, p95 = np.percentile(values, [5, 50, 95]).tolist()
    shape = histogram(values)
    return {
        "min": int(values.min()),
        "max": int(values.max()),
        "mean": float(values.mean()),
        "median": median,
        "std": float(values.std()),
        "p5": p5,
        "p95": p95,
        "histogram": {"hist": list(shape.hist), "bin_edges": list(shape.bin_edges)},
    }


def whole_mean(values: Lengths) -> int:
    """The mean without its fraction, sum // count: what `avg_chosen_len` has always meant in preference tools."""
    return int(values.sum()) // len(values)
