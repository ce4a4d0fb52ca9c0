"""Who watches a run: the live panel where there is a terminal, plain lines of key=value everywhere else (CI, Slurm,
files: nothing is ever overwritten or coloured); and the page that is written when a run ends.
"""

import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TextIO

from simpo_cli.errors import UserError
from simpo_cli.formatting import fixed
from simpo_cli.report.console import Console, err, make_console, printable
from simpo_cli.report.live import LivePanel, Progress, print_header, print_outcome
from simpo_cli.run.events import EvalRecord, Observer, RunHeader, RunOutcome, StepRecord
from simpo_cli.stages import Pulse

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_LINES_AT_LEAST = 5.0


class Heartbeat:
    """A line at the first and the last step, and else after 30 s or 1 % of the steps, but not within 5 s of another.

    `clock` gives seconds from any fixed moment, `now` the time of day that a line begins with.
    """

    def __init__(
        self,
        console: Console,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._console, self._clock, self._now = console, clock, now
        self._progress = Progress(num_steps=1, first_step=0, clock=clock)
        self._line_at: float | None = None  # when the last step line was written
        self._line_step = 0
        self._pulse = Pulse(lambda text: self._line(printable(text)), clock=clock)

    def open(self) -> None:
        """From here on what is being done is said where nothing else is."""
        self._pulse.start()

    def started(self, header: RunHeader, *, num_steps: int, first_step: int) -> None:
        self._progress = Progress(num_steps=num_steps, first_step=first_step, clock=self._clock)
        self._line_at = None
        print_header(self._console, header)
        self._pulse.heard()

    def note(self, text: str, _code: str = "", /) -> None:
        self._line(printable(text))

    def step(self, record: StepRecord) -> None:
        self._progress.step(record)
        if self._is_due(record.step):
            self._line_at, self._line_step = self._clock(), record.step
            evaluation = self._progress.evaluation
            drift = "" if evaluation is None else f"chosen_delta={fixed(evaluation.logps_chosen_delta, 2)} "
            self._line(
                f"step={record.step}/{self._progress.num_steps} loss={fixed(record.loss, 3)} "
                f"accuracy={fixed(record.rewards_accuracies, 3)} n={record.pairs} "
                f"margin={fixed(record.rewards_margins, 2)} {drift}"
                f"tokens_per_second={fixed(record.tokens_per_second, 0)} eta={fixed(self._progress.seconds_left, 0)}s"
            )

    def evaluated(self, record: EvalRecord) -> None:
        self._progress.evaluated(record)
        self._line(
            f"eval step={record.step} loss={fixed(record.loss, 3)} accuracy={fixed(record.accuracy, 3)} "
            f"low={fixed(record.accuracy_low, 3)} high={fixed(record.accuracy_high, 3)} n={record.pairs} "
            f"prompts={record.prompts} margin={fixed(record.margin, 2)} "
            f"chosen_delta={fixed(record.logps_chosen_delta, 2)} "
            f"rejected_delta={fixed(record.logps_rejected_delta, 2)} seconds={fixed(record.seconds, 1)}"
        )

    def finished(self, outcome: RunOutcome) -> None:
        self.close()
        print_outcome(self._console, outcome)

    def close(self) -> None:
        self._pulse.stop()

    def _is_due(self, step: int) -> bool:
        if self._line_at is None or step >= self._progress.num_steps:
            return True
        seconds = self._clock() - self._line_at
        share = (step - self._line_step) / self._progress.num_steps
        return seconds >= SECONDS_BETWEEN_LINES or (share >= 0.01 and seconds >= SECONDS_BETWEEN_LINES_AT_LEAST)

    def _line(self, text: str) -> None:
        self._pulse.heard()
        self._console.print(f"{self._now():%H:%M:%S} {text}", soft_wrap=True)


class WithReport:
    """Passes every event on to the terminal; before the last screen, which names the page, the page is written."""

    def __init__(self, watcher: Observer, run_dir: Path) -> None:
        self._watcher, self._run_dir = watcher, run_dir
        self._has_started = False
        self.note, self.step, self.evaluated, self.close = watcher.note, watcher.step, watcher.evaluated, watcher.close

    def started(self, header: RunHeader, *, num_steps: int, first_step: int) -> None:
        self._has_started = True  # from here on the folder is this run's
        self._watcher.started(header, num_steps=num_steps, first_step=first_step)

    def finished(self, outcome: RunOutcome) -> None:
        self._write()
        self._watcher.finished(outcome)

    def ended_early(self) -> None:
        """The run failed or was stopped: show how far it got, if it got as far as having something to show."""
        if self._has_started and (self._run_dir / "run.json").is_file() and (page := self._write()) is not None:
            self._watcher.note(f"report {page}")

    def was_complete(self) -> None:
        """The run had come to its end before: write the page where the process that did so was killed on the way."""
        page, receipt = self._run_dir / "report.html", self._run_dir / "run.json"
        if not page.exists() or page.stat().st_mtime_ns < receipt.stat().st_mtime_ns:  # or that of an earlier end
            self._write()

    def _write(self) -> Path | None:
        from simpo_cli.report.run_page import write_run_report  # matplotlib takes a while to import

        try:
            return write_run_report(self._run_dir)
        except Exception as error:  # the run is what counts: its model is saved, whatever becomes of its page
            why = error.problem if isinstance(error, UserError) else error
            self._watcher.note(f"report.html was not written ({why}); try: simpo report {self._run_dir}")
            return None


LOG_WIDTH = 120


def watch(stream: TextIO | None = None) -> LivePanel | Heartbeat:
    """An observer on `stream` (stderr): a live panel if it is a terminal that can move its cursor, else a heartbeat.

    On stderr the panel shares the console `err`, so what others print there appears above it.
    """
    console = err if stream is None else make_console(stream)
    if (stream or sys.stderr).isatty() and console.is_interactive:
        return LivePanel(console)
    # a log has no width of its own: COLUMNS, or wide enough for the table of results
    width = None if "COLUMNS" in os.environ else LOG_WIDTH
    return Heartbeat(make_console(stream, stderr=stream is None, width=width))
