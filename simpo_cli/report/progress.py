"""How far a run is: what the panel and the heartbeat both keep of the records they are given."""

import itertools
import math
from collections import deque
from collections.abc import Callable
from statistics import median

from simpo_cli.train.events import EvalRecord, StepRecord

LOSS_BINS = 120
RECENT_STEPS = 32


class Progress:
    """The latest records, the time left and the loss curve.

    Another thread may read while the run writes: attributes are replaced whole, and the bins of the curve are of a
    fixed number.

    Args:
        num_steps: steps of the whole run.
        first_step: steps already done when it started, above 0 after a resume.
        clock: seconds from any fixed moment.
    """

    def __init__(self, *, num_steps: int, first_step: int, clock: Callable[[], float]) -> None:
        self.num_steps = num_steps
        self.first_step = first_step
        self.record: StepRecord | None = None
        self.evaluation: EvalRecord | None = None
        self._clock = clock
        self._started_at = clock()
        self._last_step_at = self._started_at
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._seconds_per_step = math.nan
        self._loss_sums = [0.0] * LOSS_BINS  # of the steps that lie in each part of the run
        self._loss_counts = [0] * LOSS_BINS

    @property
    def steps_done(self) -> int:
        return self.record.step if self.record else self.first_step

    @property
    def seconds_so_far(self) -> float:
        return self._clock() - self._started_at

    @property
    def seconds_left(self) -> float:
        """Steps to come at the median pace of the recent ones, less what the current one has already taken."""
        steps_left = max(0, self.num_steps - self.steps_done)
        into_this_step = min(self._clock() - self._last_step_at, self._seconds_per_step)
        return max(0.0, steps_left * self._seconds_per_step - into_this_step) if steps_left else 0.0

    def step(self, record: StepRecord) -> None:
        self._recent.append(record.seconds)
        self._seconds_per_step = median(self._recent)
        self._last_step_at = self._clock()
        if math.isfinite(record.loss):
            first_bin = LOSS_BINS * (record.step - 1) // self.num_steps
            end_bin = LOSS_BINS * record.step // self.num_steps
            for number in range(first_bin, min(max(end_bin, first_bin + 1), LOSS_BINS)):
                self._loss_sums[number] += record.loss
                self._loss_counts[number] += 1
        self.record = record

    def evaluated(self, record: EvalRecord) -> None:
        self.evaluation = record
        self._last_step_at = self._clock()  # the time an evaluation takes is not time spent on the next step

    def loss_curve(self, cells: int) -> list[float]:
        """Mean loss of each of `cells` equal parts of the run, as far as it has come; NaN where no step was seen."""
        edges = [LOSS_BINS * cell // cells for cell in range(cells + 1)]
        sums = [sum(self._loss_sums[low:high]) for low, high in itertools.pairwise(edges)]
        counts = [sum(self._loss_counts[low:high]) for low, high in itertools.pairwise(edges)]
        seen = max((cell + 1 for cell, count in enumerate(counts) if count), default=0)
        return [total / count if count else math.nan for total, count in zip(sums[:seen], counts[:seen], strict=True)]
