"""What a run will take, predicted from small runs: memory before it is used up, time before it is spent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SIZES = (16, 8, 4)  # pairs of a step that a plan may choose


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Peak memory of a side that pads: fixed + per_token * tokens + per_score * (query, key) positions.

    Attributes:
        fixed: bytes that do not depend on the batch: libraries, weights, gradients, optimizer.
        per_token: bytes a padded position: activations and copies of the logits.
        per_score: bytes a position of the square of scores.
    """

    fixed: float
    per_token: float
    per_score: float

    def peak(self, rows: int, width: int) -> float:
        """Bytes that a batch of so many rows of this width will take."""
        return self.fixed + self.per_token * rows * width + self.per_score * rows * width * width

    def widest(self, rows: int, limit: float) -> int:
        """The longest row that this many may have within a limit of bytes; 0 when none may."""
        width = 0
        while self.peak(rows, width + 1) <= limit and width < 1 << 20:
            width += 1
        return width


def fit_memory(peaks: Mapping[int, int], rows: int) -> MemoryModel:
    """The model that runs through the peaks, in bytes, seen at batches of `rows` rows of three or more widths.

    Costs are not below zero: what noise makes negative is left out and the rest fitted again.
    """
    widths = sorted(peaks)
    seen = np.array([peaks[width] for width in widths], dtype=float)
    columns = [np.ones(len(widths)), *(np.array([rows * width**power for width in widths], float) for power in (1, 2))]
    used = [0, 1, 2]
    while True:
        scale = [columns[i].max() for i in used]
        solved = np.linalg.lstsq(np.stack([columns[i] / s for i, s in zip(used, scale, strict=True)], 1), seen)[0]
        values = dict(zip(used, solved / scale, strict=True))
        negative = [i for i in used if values[i] < 0]
        if not negative:
            return MemoryModel(*(float(values.get(i, 0.0)) for i in range(3)))
        used.remove(negative[-1])


def choose_sizes(costs: Mapping[str, Sequence[float]], seconds: float) -> dict[str, int]:
    """How many pairs a step of each data set has, so that all data sets together fit in the time.

    Starts from the most and halves where most time goes.

    Args:
        costs: predicted seconds of a data set at each of `SIZES`.
        seconds: the time there is. When not even the smallest sizes fit, they are taken all the same.
    """
    at = dict.fromkeys(costs, 0)
    while sum(costs[key][i] for key, i in at.items()) > seconds:
        can = [key for key, i in at.items() if i + 1 < len(SIZES)]
        if not can:
            break
        at[max(can, key=lambda key: costs[key][at[key]])] += 1
    return {key: SIZES[i] for key, i in at.items()}
