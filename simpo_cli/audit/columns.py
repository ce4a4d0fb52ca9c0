"""Columns of numbers, a row for each pair: collected batch by batch, and described."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_BINS = 20

Lengths = NDArray[np.int64]


class Column:
    """Rows of one shape, () for a number, and type that grow batch by batch, in no more memory than they take."""

    def __init__(self, dtype: Any, shape: Sequence[int] = ()) -> None:
        self._dtype, self._shape = np.dtype(dtype), tuple(shape)
        self._numbers = bytearray()

    def add(self, rows: ArrayLike) -> None:
        """Append rows: (k, *shape)."""
        self._numbers += np.ascontiguousarray(rows, dtype=self._dtype).reshape(-1).view(np.uint8).data

    @property
    def rows(self) -> NDArray[Any]:
        """(n, *shape) all of them; none can be added any more."""
        return np.frombuffer(self._numbers, dtype=self._dtype).reshape(-1, *self._shape)


class PlaceColumn:
    """The places of many pairs (`prefs.jsonl:17`), 12 bytes each: what stands in front of the number is kept once."""

    def __init__(self) -> None:
        self._prefixes: dict[str, int] = {}
        self._prefix, self._number = Column(np.int32), Column(np.int64)

    def add(self, places: Iterable[str]) -> None:
        """Append places."""
        parts = [_parts(place) for place in places]
        self._prefix.add([self._prefixes.setdefault(prefix, len(self._prefixes)) for prefix, _ in parts])
        self._number.add([number for _, number in parts])

    def at(self, positions: Iterable[int]) -> list[str]:
        """The places of these pairs; none can be added any more."""
        prefixes, of, numbers = list(self._prefixes), self._prefix.rows, self._number.rows
        return [prefixes[of[i]] + ("" if numbers[i] < 0 else str(numbers[i])) for i in positions]


def _parts(place: str) -> tuple[str, int]:
    """What stands in front of a place's number, and the number; -1 where it would not come back as it was."""
    prefix = place.rstrip("0123456789")
    digits = place[len(prefix) :]
    if not digits or len(digits) > 18 or (digits[0] == "0" and len(digits) > 1):
        return place, -1
    return prefix, int(digits)


def histogram(values: NDArray[Any], *, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    """Counts in bins of equal width.

    Args:
        values: (n,) lengths, differences or margins, at least one.
        low, high: the outermost edges; what lies beyond them counts in the outermost bins. None takes the extremes.

    Returns:
        hist: how many values lie in each bin; bin_edges: one more than bins, the last bin includes its upper edge.
    """
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    if high <= low:
        return {"hist": [len(values)], "bin_edges": [low, low]}
    hist, edges = np.histogram(np.clip(values, low, high), bins=NUM_BINS, range=(low, high))
    return {"hist": hist.tolist(), "bin_edges": edges.tolist()}


def describe(values: Lengths) -> dict[str, Any]:
    """The numbers of one column of the document.

    Returns:
        min, max, mean, median, std (of these values, divided by n), p5, p95 (linear between values) and the histogram.
    """
    p5, median, p95 = np.percentile(values, [5, 50, 95]).tolist()
    return {
        "min": int(values.min()),
        "max": int(values.max()),
        "mean": float(values.mean()),
        "median": median,
        "std": float(values.std()),
        "p5": p5,
        "p95": p95,
        "histogram": histogram(values),
    }


def whole_mean(values: Lengths) -> int:
    """The mean without its fraction, sum // count: what `avg_chosen_len` has always meant in preference tools."""
    return int(values.sum()) // len(values)
