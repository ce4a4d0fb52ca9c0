"""The page at the end of a run: before the last screen, also where the run ends early, and never at its cost."""

import os
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.errors import UserError
from simpo_cli.report import run_page
from simpo_cli.report.watch import WithReport
from simpo_cli.run.events import EvalRecord, RunHeader, RunOutcome, StepRecord
from tests.report.made_run import outcome as made_outcome
from tests.report.made_run import write_run


class Watcher:
    """Notes what it is told, and whether the page was there at the last screen."""

    def __init__(self, page: Path) -> None:
        self.page, self.heard, self.notes = page, list[str](), list[str]()

    def started(self, header: RunHeader, *, num_steps: int, first_step: int) -> None:
        self.heard.append(f"started {header.title[:5]} {num_steps} {first_step}")

    def note(self, text: str, _code: str = "", /) -> None:
        self.notes.append(text)

    def step(self, record: StepRecord) -> None:
        self.heard.append(f"step {record.step}")

    def evaluated(self, record: EvalRecord) -> None:
        self.heard.append(f"evaluated {record.step}")

    def finished(self, outcome: RunOutcome) -> None:
        self.heard.append(f"finished {outcome.steps} {self.page.is_file()}")

    def close(self) -> None:
        self.heard.append("closed")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", outcome=made_outcome((0.3, 0.2, 0.4), 0.001))


@pytest.fixture
def watcher(run: Path) -> Watcher:
    return Watcher(run / "report.html")


def test_the_page_is_there_before_the_last_screen(
    run: Path, watcher: Watcher, header: RunHeader, outcome: RunOutcome, evaluation: EvalRecord, step_record: Any
) -> None:
    observer = WithReport(watcher, run)
    observer.started(header, num_steps=4, first_step=1)
    observer.evaluated(evaluation)
    observer.step(step_record(2))
    observer.note("as it is")
    observer.finished(outcome)
    observer.close()
    assert watcher.heard == ["started simpo 4 1", "evaluated 0", "step 2", "finished 62 True", "closed"]
    assert watcher.notes == ["as it is"]


def test_a_run_that_ends_early_has_a_page_too(run: Path, watcher: Watcher, header: RunHeader) -> None:
    observer = WithReport(watcher, run)
    observer.started(header, num_steps=4, first_step=0)
    observer.ended_early()
    assert watcher.page.is_file()
    assert watcher.notes == [f"report {watcher.page}"]


def test_a_run_that_never_started_touches_no_folder(run: Path, watcher: Watcher) -> None:
    WithReport(watcher, run).ended_early()  # such as: the folder holds another run
    assert not watcher.page.exists()
    assert watcher.notes == []


@pytest.mark.parametrize("error", [ZeroDivisionError("no page"), UserError("no page", "Name a folder.")])
def test_a_page_that_cannot_be_written_does_not_fail_the_run(
    error: Exception,
    run: Path,
    watcher: Watcher,
    header: RunHeader,
    outcome: RunOutcome,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(run_page, "run_page", fail)
    observer = WithReport(watcher, run)
    observer.started(header, num_steps=4, first_step=0)
    observer.finished(outcome)
    observer.ended_early()
    assert watcher.heard == ["started simpo 4 0", "finished 62 False"]
    assert watcher.notes == [f"report.html was not written (no page); try: simpo report {run}"] * 2


def test_a_run_that_was_complete_gets_the_page_that_it_lacks_and_keeps_the_one_it_has(
    run: Path, watcher: Watcher
) -> None:
    WithReport(watcher, run).was_complete()
    assert watcher.page.is_file()
    watcher.page.write_text("as it was", encoding="utf-8")
    WithReport(watcher, run).was_complete()
    assert watcher.page.read_text(encoding="utf-8") == "as it was"


def test_a_page_of_an_earlier_end_of_the_run_is_written_anew(run: Path, watcher: Watcher) -> None:
    WithReport(watcher, run).was_complete()
    first = watcher.page.read_bytes()
    (run / "run.json").write_text((run / "run.json").read_text(encoding="utf-8").replace('"seed": ', '"seed": 1'))
    before = watcher.page.stat().st_mtime_ns
    os.utime(run / "run.json", ns=(before + 1, before + 1))
    WithReport(watcher, run).was_complete()
    assert watcher.page.read_bytes() != first
