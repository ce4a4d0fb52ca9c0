"""A measured number as tables show it: the number, and beside or below it what belongs to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from simpo_cli.report.text import fixed, percent, percent_range

Measured = Mapping[str, Any]  # {"value", "ci": [low, high], "n"}

_NO_INTERVAL = "no interval"  # of one pair or prompt, or where all are alike


@dataclass(frozen=True, slots=True)
class Cell:
    """A number and, smaller, the interval or remark that belongs to it."""

    text: str
    below: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.below})" if self.below else self.text


def share_cell(measured: Measured) -> Cell:
    """A share of pairs or prompts; its interval ends where shares do."""
    low, high = measured["ci"]
    interval = _NO_INTERVAL if low is None else percent_range(max(0.0, low), min(1.0, high))
    return Cell(percent(measured["value"]), interval)


def points_cell(measured: Measured) -> Cell:
    """A difference of two shares, in percentage points."""
    return _cell(measured, lambda share: f"{100 * share:+z.1f}")


def number_cell(measured: Measured, digits: int) -> Cell:
    """A number that is no share."""
    return _cell(measured, lambda number: fixed(number, digits))


def change_cell(measured: Measured, digits: int) -> Cell:
    """A change of such a number, with its sign."""
    return _cell(measured, lambda number: f"{number:+z.{digits}f}")


def _cell(measured: Measured, show: Callable[[float], str]) -> Cell:
    low, high = measured["ci"]
    return Cell(show(measured["value"]), _NO_INTERVAL if low is None else f"{show(low)} to {show(high)}")
