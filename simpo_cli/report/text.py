"""Figures one line high."""

import math
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"


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
