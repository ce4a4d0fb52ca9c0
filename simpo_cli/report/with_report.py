"""An observer that has report.html written when a run ends, also when it ends early."""

from pathlib import Path

from simpo_cli.train.events import EvalRecord, Observer, RunHeader, RunOutcome, StepRecord


class WithReport:
    """Passes every event on; before the last screen, which names the page, the page is written.

    Args:
        watcher: the terminal.
        run_dir: the run's folder.
    """

    def __init__(self, watcher: Observer, run_dir: Path) -> None:
        self._watcher, self._run_dir = watcher, run_dir
        self._has_started = False

    def started(self, header: RunHeader, *, num_steps: int, first_step: int) -> None:
        self._has_started = True  # from here on the folder is this run's
        self._watcher.started(header, num_steps=num_steps, first_step=first_step)

    def note(self, text: str) -> None:
        self._watcher.note(text)

    def step(self, record: StepRecord) -> None:
        self._watcher.step(record)

    def evaluated(self, record: EvalRecord) -> None:
        self._watcher.evaluated(record)

    def finished(self, outcome: RunOutcome) -> None:
        self._write()
        self._watcher.finished(outcome)

    def ended_early(self) -> None:
        """The run failed or was stopped: show how far it got, if it got as far as having a folder."""
        if self._has_started and (page := self._write()) is not None:
            self._watcher.note(f"report {page}")

    def was_complete(self) -> None:
        """The run had come to its end before: write the page where the process that did so was killed on the way."""
        page, receipt = self._run_dir / "report.html", self._run_dir / "run.json"
        if not page.exists() or page.stat().st_mtime_ns < receipt.stat().st_mtime_ns:  # or that of an earlier end
            self._write()

    def close(self) -> None:
        self._watcher.close()

    def _write(self) -> Path | None:
        from simpo_cli.report.run_page import write_run_report  # matplotlib takes a while to import

        try:
            return write_run_report(self._run_dir)
        except Exception as error:  # the run is what counts: its model is saved, whatever becomes of its page
            self._watcher.note(f"report.html was not written ({error}); try: simpo report {self._run_dir}")
            return None
