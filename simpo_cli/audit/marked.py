"""Which pairs each code concerns, in 8 bytes a pair and code."""

from array import array
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from simpo_cli.audit.findings import SHOWN_ROWS, Positions


class Marked:
    """Collects pairs by code, in their order."""

    def __init__(self) -> None:
        self._positions: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
        self._places: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, code: str, position: int, where: str) -> None:
        """One more pair.

        Args:
            code: what it is marked with.
            position: its number.
            where: its place; the first ones are kept.
        """
        self._positions[code].append(position)
        if len(self._places[code]) < SHOWN_ROWS:
            self._places[code].append(where)

    def positions(self, code: str) -> Positions:
        """(n,) the numbers of the pairs with a code."""
        return np.array(self._positions.get(code, ()), dtype=np.int64)

    def places(self, code: str) -> list[str]:
        """The places of the first of them."""
        return self._places.get(code, [])

    def __iter__(self) -> Iterator[str]:
        """The codes, in the order in which they turned up."""
        return iter(self._positions)
