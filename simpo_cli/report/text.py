"""Numbers as people read them, and figures one line high. Every view writes them the same way."""

import math
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"


def fixed(value: float, digits: int) -> str:
    """0.742; never -0.00, and nan or inf as they are."""
    return f"{value:z.{digits}f}"


def percent(share: float) -> str:
    """51.2 % of a share in 0..1. Stands beside its interval and n, never alone."""
    return f"{100 * share:.1f} %"


def percent_range(low: float, high: float) -> str:
    """46.8 to 55.6, the interval of a `percent`."""
    return f"{100 * low:.1f} to {100 * high:.1f}"


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


def sparkline(values: Sequence[float]) -> str:
    """One block a value, the lowest value lowest; a blank where a value is not finite. Equal values are all low."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return " " * len(values)
    low, spread = min(finite), max(finite) - min(finite)
    return "".join(
        BLOCKS[round((value - low) / spread * (len(BLOCKS) - 1)) if spread else 0] if math.isfinite(value) else " "
        for value in values
    )


def blocks(counts: Sequence[int]) -> str:
    """A histogram: one block a bin, the fullest bin highest; a bin with anything in it is never blank."""
    most = max(counts)
    return "".join(BLOCKS[max(0, -(-count * len(BLOCKS) // most) - 1)] if count else " " for count in counts)


def bar(share: float, width: int) -> tuple[str, str]:
    """The done and the open part of a progress bar `width` cells wide; full only when all is done."""
    done = min(width if share >= 1 else width - 1, math.floor(max(0.0, share) * width))
    return "━" * done, "─" * (width - done)
