"""Rows of numbers collected batch by batch, in no more memory than the numbers take."""

from collections.abc import Sequence
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
