"""An observer that writes: metrics.jsonl, evals.jsonl, notes.jsonl and the trackers that the recipe names."""

import sys

from accelerate import Accelerator

from simpo_cli.train.events import EvalRecord, Observer, RunHeader, RunOutcome, StepRecord
from simpo_cli.train.run_folder import EVALS, METRICS, NOTES, RunFolder


class Recorder:
    """Passes every event on to whoever watches, after it has been written.

    Args:
        folder: the run's folder.
        accelerator: its trackers get every row too; without trackers that does nothing.
        log_every: steps between lines of metrics.jsonl; the first and the last step always have one.
        watcher: the terminal.
    """

    def __init__(self, folder: RunFolder, accelerator: Accelerator, log_every: int, watcher: Observer) -> None:
        self._folder, self._accelerator, self._log_every, self._watcher = folder, accelerator, log_every, watcher
        self._num_steps = 0
        folder.cut_back(NOTES, sys.maxsize)  # all but half a line that a killed process left

    def started(self, header: RunHeader, *, num_steps: int, first_step: int) -> None:
        self._num_steps = num_steps
        for label, text in header.lines if first_step == 0 else ():  # a run that goes on has said it
            self._folder.append(NOTES, {"label": label, "text": text})
        self._watcher.started(header, num_steps=num_steps, first_step=first_step)

    def note(self, text: str) -> None:
        self._folder.append(NOTES, {"label": "note", "text": text})
        self._watcher.note(text)

    def step(self, record: StepRecord) -> None:
        if record.step in (1, self._num_steps) or record.step % self._log_every == 0:
            row = record.as_metrics()
            self._folder.append(METRICS, row)
            self._accelerator.log({name: value for name, value in row.items() if name != "step"}, step=record.step)
        self._watcher.step(record)

    def evaluated(self, record: EvalRecord) -> None:
        row = record.as_metrics()
        self._folder.append(EVALS, row)
        named = {f"eval/{name}": value for name, value in row.items() if name != "step"}
        self._accelerator.log(named, step=record.step)
        self._watcher.evaluated(record)

    def finished(self, outcome: RunOutcome) -> None:
        self._watcher.finished(outcome)

    def close(self) -> None:
        self._watcher.close()
