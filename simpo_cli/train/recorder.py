"""An observer that writes: metrics.jsonl, evals.jsonl, answers.jsonl, notes.jsonl and the recipe's trackers."""

import sys

from simpo_cli.train.events import EvalRecord, Observer, RunHeader, RunOutcome, StepRecord
from simpo_cli.train.run_folder import ANSWERS, EVALS, METRICS, NOTES, RunFolder
from simpo_cli.train.trackers import Trackers


class Recorder:
    """Passes every event on to whoever watches, after it has been written.

    Args:
        folder: the run's folder.
        log_every: steps between lines of metrics.jsonl; the first and the last step always have one.
        watcher: the terminal.

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
