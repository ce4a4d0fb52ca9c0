"""A run as a log: plain lines of key=value for CI, Slurm and files. Nothing is ever overwritten or coloured."""

import time
from collections.abc import Callable
from datetime import datetime

from simpo_cli.formatting import fixed
from simpo_cli.report.console import Console, printable
from simpo_cli.report.progress import Progress
from simpo_cli.report.summary import print_header, print_outcome
from simpo_cli.train.events import EvalRecord, RunHeader, RunOutcome, StepRecord

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_LINES_AT_LEAST = 5.0


class Heartbeat:
    """A line at the first and the last step, and else after 30 s or 1 % of the steps, but not within 5 s of another.

    Args:
        console: where the lines go.
        clock: seconds from any fixed moment.
        now: the time of day that a line begins with.
    """

    def __init__(
        self,
        console: Console,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._console = console
        self._clock = clock
        self._now = now
        self._progress = Progress(num_steps=1, first_step=0, clock=clock)
        self._line_at: float | None = None  # when the last step line was written
        self._line_step = 0

    def started(self, header: RunHeader, *, num_steps: int, first_step: int) -> None:
        self._progress = Progress(num_steps=num_steps, first_step=first_step, clock=self._clock)
        self._line_at = None
        print_header(self._console, header)

    def note(self, text: str) -> None:
        self._line(printable(text))

    def step(self, record: StepRecord) -> None:
        self._progress.step(record)
        if self._is_due(record.step):
            self._line_at, self._line_step = self._clock(), record.step
            self._line(step_line(self._progress, record))

    def evaluated(self, record: EvalRecord) -> None:
        self._progress.evaluated(record)
        self._line(eval_line(record))

    def finished(self, outcome: RunOutcome) -> None:
        print_outcome(self._console, outcome)

    def close(self) -> None:
        """Nothing was changed, so there is nothing to put back."""

    def _is_due(self, step: int) -> bool:
        if self._line_at is None or step >= self._progress.num_steps:
            return True
        seconds = self._clock() - self._line_at
        share = (step - self._line_step) / self._progress.num_steps
        return seconds >= SECONDS_BETWEEN_LINES or (share >= 0.01 and seconds >= SECONDS_BETWEEN_LINES_AT_LEAST)

    def _line(self, text: str) -> None:
        self._console.print(f"{self._now():%H:%M:%S} {text}", soft_wrap=True)


def step_line(progress: Progress, record: StepRecord) -> str:
    """step=180/467 loss=0.742 ... eta=950s; chosen_delta is the latest evaluation's, left out before the first."""
    fields = {
        "step": f"{record.step}/{progress.num_steps}",
        "loss": fixed(record.loss, 3),
        "accuracy": fixed(record.rewards_accuracies, 3),
        "n": str(record.pairs),
        "margin": fixed(record.rewards_margins, 2),
    }
    if progress.evaluation is not None:
        fields["chosen_delta"] = fixed(progress.evaluation.logps_chosen_delta, 2)
    fields["tokens_per_second"] = fixed(record.tokens_per_second, 0)
    fields["eta"] = fixed(progress.seconds_left, 0) + "s"
    return " ".join(f"{name}={value}" for name, value in fields.items())


def eval_line(record: EvalRecord) -> str:
    """eval step=100 loss=0.712 accuracy=0.612 low=0.569 high=0.654 n=500 prompts=480 ..."""
    fields = {
        "step": str(record.step),
        "loss": fixed(record.loss, 3),
        "accuracy": fixed(record.accuracy, 3),
        "low": fixed(record.accuracy_low, 3),
        "high": fixed(record.accuracy_high, 3),
        "n": str(record.pairs),
        "prompts": str(record.prompts),
        "margin": fixed(record.margin, 2),
        "chosen_delta": fixed(record.logps_chosen_delta, 2),
        "rejected_delta": fixed(record.logps_rejected_delta, 2),
        "seconds": fixed(record.seconds, 1),
    }
    return "eval " + " ".join(f"{name}={value}" for name, value in fields.items())
