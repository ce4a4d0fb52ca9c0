"""Numbers as people read them. Terminal, page, model card and messages all write them through here."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Measured = Mapping[str, Any]  # {"value", "ci": [low, high], "n"}

MARGIN_DIGITS = 2
LOSS_DIGITS = 3
LOG_PROB_DIGITS = 3
FEW_PROMPTS = 30
"""Effective prompts under which intervals are rough."""
LEVEL = 0.05
"""A p value below it says that a difference is more than chance."""

_NO_INTERVAL = "no interval"  # of one pair or prompt, or where all are alike


def fixed(value: float, digits: int) -> str:
    """0.742; never -0.00, and nan or inf as they are."""
    return f"{value:z.{digits}f}"


def percent(share: float) -> str:
    """51.2 % of a share in 0..1. Stands beside its interval and n, never alone."""
    return f"{100 * share:.1f} %"


def percent_range(low: float, high: float) -> str:
    """46.8 to 55.6, the interval of a `percent`."""
    return f"{100 * low:.1f} to {100 * high:.1f}"


def p_in_words(p_value: float) -> str:
    """p = 0.032, p < 0.0001; near 0.05 with three figures, and never rounded up to it."""
    if p_value < 1e-4:
        return "p < 0.0001"
    if not 0.0445 <= p_value < 0.0555:
        return f"p = {p_value:.2g}"
    return f"p = {min(p_value, LEVEL - 1e-4) if p_value < LEVEL else p_value:.3g}"


def excludes_zero(measured: Measured) -> bool:
    """Whether an interval leaves zero out."""
    low, high = measured["ci"]
    return low is not None and high is not None and (low > 0 or high < 0)


def border_in_words(difference: Measured, p_value: float) -> str:
    """A sentence where interval and exact test disagree, else nothing."""
    if excludes_zero(difference) == (p_value < LEVEL):
        return ""
    interval, test = ("leaves out", "is not") if excludes_zero(difference) else ("holds", "is")
    return (
        f"Interval and test disagree: the interval {interval} zero, p {test} below {LEVEL}. They are made in different "
        "ways, and at the border either may be right: take it as undecided."
    )


def effective_prompts(counted: Mapping[str, Any]) -> float:
    """How many prompts of equal weight a document's `prompts` count as; runs of before 0.2 do not say it."""
    return float(counted.get("effective_prompts", counted["prompts"]))


def prompts_in_words(counted: Mapping[str, Any]) -> str:
    """480 prompts; where only their unevenness makes them few, also how many they count as."""
    prompts, effective = counted["prompts"], effective_prompts(counted)
    if effective < FEW_PROMPTS <= prompts:
        return f"{prompts:,} prompts (they count as {effective:.0f}: a few of them hold most of the pairs)"
    return f"{prompts:,} prompts"


def few_prompts(counted: Mapping[str, Any]) -> str:
    """A sentence where a document's prompts are too few for its intervals to be exact, else nothing."""
    if effective_prompts(counted) >= FEW_PROMPTS:
        return ""
    return f"Only {prompts_in_words(counted)}: too few to conclude much, and intervals are rough."


def thousands(count: int) -> str:
    """11,902"""
    return f"{count:,}"


def compact(amount: float) -> str:
    """41.2k, 1.3M, 950: three figures are enough for a speed."""
    if not math.isfinite(amount):
        return str(amount)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(amount) >= limit * 0.9995:
            return f"{amount / limit:.1f}{unit}"
    return f"{amount:.0f}"


def duration(seconds: float) -> str:
    """0:38, 15:50, 2:03:10, 3 d 04:05 (hours and minutes)."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02}:{minute:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


@dataclass(frozen=True, slots=True)
class Cell:
    """A measured number and, beside or below it and smaller, the interval or remark that belongs to it."""

    text: str
    below: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.below})" if self.below else self.text


def share_cell(measured: Measured) -> Cell:
    """A share of pairs or prompts; its interval ends where shares do."""
    low, high = measured["ci"]
    interval = _NO_INTERVAL if None in (low, high) else percent_range(max(0.0, low), min(1.0, high))
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


def interval_in_words(cell: Cell) -> str:
    """95 % CI 46.8 to 55.6, or that there is no interval."""
    return cell.below if cell.below == _NO_INTERVAL else f"95 % CI {cell.below}"


def _cell(measured: Measured, show: Callable[[float], str]) -> Cell:
    low, high = measured["ci"]
    return Cell(show(measured["value"]), _NO_INTERVAL if None in (low, high) else f"{show(low)} to {show(high)}")


def weights_in_words(dtype: str, quantization: str | None) -> str:
    """bfloat16, nf4 in linear layers."""
    return dtype if quantization is None else f"{dtype}, {quantization} in linear layers"
