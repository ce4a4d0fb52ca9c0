"""What the audit has to say: findings with stable codes, each with what to do about it, and the pairs they concern."""

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpo_cli.audit.catalogue import CATALOGUE, Severity

SHOWN_ROWS = 20
"""Places that a finding names in the document; its count says how many there are."""

Positions = NDArray[np.int64]
_NONE: Positions = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of trouble."""

    code: str  # its stable code, a key of CATALOGUE
    severity: Severity  # `error` for what makes training wrong, `warning` for what a person should look at
    count: int  # pairs or records that it concerns
    hint: str  # what to do
    rows: Sequence[str] = field(default=())  # places of the first of them
    pairs: Positions = field(default_factory=_NONE.copy, compare=False)  # their positions among the pairs measured

    def as_json(self) -> dict[str, Any]:
        """The finding as the document holds it."""
        rows = list(self.rows[:SHOWN_ROWS])
        return {"code": self.code, "severity": self.severity, "count": self.count, "rows": rows, "hint": self.hint}


def finding(code: str, count: int, *, detail: str = "", rows: Sequence[str] = (), pairs: Positions = _NONE) -> Finding:
    """A finding with the severity and remedy of its code."""
    entry = CATALOGUE[code]
    return Finding(code, entry.severity, count, f"{detail} {entry.remedy}".lstrip(), rows, pairs)


class PairsByCode:
    """Which pairs each code concerns, in 8 bytes a pair and code, with the places of the first of them."""

    def __init__(self) -> None:
        self._positions: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
        self._places: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, code: str, position: int, where: str) -> None:
        """One more pair, by its number and its place."""
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
