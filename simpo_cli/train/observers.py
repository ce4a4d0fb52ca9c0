"""Who watches a run beside the terminal: the logs of its folder, and the trackers that the recipe names.

A tracker talks to a server, so it fails when that is away. None of them can harm the run: its numbers stop, which is
said once; metrics.jsonl and evals.jsonl have them all.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.schema import Recipe
from simpo_cli.redaction import redacted
from simpo_cli.run.events import EvalRecord, Note, Observer, RunHeader, RunOutcome, StepRecord
from simpo_cli.run.folder import ANSWERS, EVALS, METRICS, NOTES, RunFolder


def require_trackers(names: list[str]) -> None:
    """Refuse a tracker that accelerate does not know or whose package is not installed.

    Raises:
        UserError: an unknown name (exit code 2), or a package that is missing (exit code 4).
    """
    known = sorted(LOGGER_TYPE_TO_CLASS)
    installed = {getattr(name, "value", name) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            raise UserError(
                f"tracking.report_to names {name!r}, which is no tracker.",
                f"accelerate knows {', '.join(known)}.",
                key="tracking.report_to",
            )
        if name not in installed:
            raise UserError(
                f"tracking.report_to names {name}, which is not installed.",
                f"Install it: pip install {name.replace('_', '-')}.",
                exit_code=ExitCode.ENVIRONMENT,
                key="tracking.report_to",
            )


class Trackers:
    """The trackers that the recipe names; one that raises is left out from then on, which `note` is told."""

    def __init__(self, accelerator: Accelerator, recipe: Recipe, note: Callable[[str], None]) -> None:
        self._note = note
        self._open: dict[str, GeneralTracker] = {}
        for name in dict.fromkeys(recipe.tracking.report_to):
            self._attempt(name, partial(self._start, name, accelerator, recipe))

    def log(self, values: Mapping[str, float | int], step: int) -> None:
        """Give numbers to every tracker."""
        for name, tracker in list(self._open.items()):
            self._attempt(name, partial(tracker.log, dict(values), step=step))

    def close(self) -> None:
        """Let them send what they still hold; a second call does nothing."""
        for name, tracker in list(self._open.items()):
            self._attempt(name, tracker.finish)
        self._open.clear()

    def _start(self, name: str, accelerator: Accelerator, recipe: Recipe) -> None:
        kind = LOGGER_TYPE_TO_CLASS[name]
        tracker = kind("simpo", accelerator.logging_dir) if kind.requires_logging_directory else kind("simpo")
        tracker.start()
        tracker.store_init_configuration(
            {  # the numbers that people compare runs by
                "name": redacted(recipe.name),
                "model": redacted(recipe.model.path),
                "beta": recipe.loss.beta,
                "gamma": recipe.loss.margin,
                "learning_rate": recipe.train.learning_rate,
                "pairs_per_step": recipe.train.pairs_per_step,
                "seed": recipe.seed,
            }
        )
        self._open[name] = tracker

    def _attempt(self, name: str, act: Callable[[], Any]) -> None:
        try:
            act()
        except (Exception, SystemExit) as error:  # whatever a server's client does when its server is away
            self._open.pop(name, None)
            first_line = (str(error).splitlines() or [""])[0][:200]
            self._note(
                f"tracker {name} has failed and gets no more numbers ({type(error).__name__}: {first_line}); the run "
                "continues, with all of them in metrics.jsonl and evals.jsonl"
            )


class Recorder:
    """Passes every event on to whoever watches, after it has been written.

    Args:
        log_every: steps between lines of metrics.jsonl; the first and the last step always have one.

    Attributes:
        trackers: get every row too, once there are some.
    """

    def __init__(self, folder: RunFolder, log_every: int, watcher: Observer) -> None:
        self._folder, self._log_every, self._watcher = folder, log_every, watcher
        self._num_steps = 0
        self.trackers: Trackers | None = None
        folder.cut_back(NOTES, sys.maxsize)  # all but half a line that a killed process left

    def started(self, header: RunHeader, *, num_steps: int, first_step: int) -> None:
        self._num_steps = num_steps
        for line in header.lines if first_step == 0 else ():  # a resumed run has said it
            self._folder.append(NOTES, line.as_row())
        self._watcher.started(header, num_steps=num_steps, first_step=first_step)

    def note(self, text: str, code: str = "", /) -> None:
        self._folder.append(NOTES, Note("note", text, code).as_row())
        self._watcher.note(text, code)

    def step(self, record: StepRecord) -> None:
        if record.step in (1, self._num_steps) or record.step % self._log_every == 0:
            row = record.as_metrics()
            self._folder.append(METRICS, row)
            self._track({name: value for name, value in row.items() if name != "step"}, record.step)
        self._watcher.step(record)

    def evaluated(self, record: EvalRecord) -> None:
        row = record.as_metrics()
        self._folder.append(EVALS, row)
        for answer in record.answer_rows():
            self._folder.append(ANSWERS, answer)
        self._track({f"eval/{name}": value for name, value in row.items() if name != "step"}, record.step)
        self._watcher.evaluated(record)

    def finished(self, outcome: RunOutcome) -> None:
        self._watcher.finished(outcome)

    def close(self) -> None:
        self._watcher.close()

    def _track(self, values: dict[str, float | int], step: int) -> None:
        if self.trackers is not None:
            self.trackers.log(values, step)
