"""A run as a log, who gets a log and who the panel, and the page at the end of a run, which never costs the run."""

import io
import math
import os
from datetime import datetime
from pathlib import Path

import pytest

from simpo_cli.errors import UserError
from simpo_cli.report import run_page
from simpo_cli.report.console import make_console
from simpo_cli.report.live import LivePanel
from simpo_cli.report.watch import Heartbeat, WithReport, watch
from simpo_cli.run.events import EvalRecord, RunHeader, RunOutcome, StepRecord
from simpo_cli.stages import stage
from tests.report.made_run import outcome as made_outcome
from tests.report.made_run import write_run
from tests.report.screen import EVALUATION, HEADER, HEADER_LINES, OUTCOME, OUTCOME_LINES, Clock, step_record

TITLE = RunHeader("title", ())


class Log(Heartbeat):
    """A log that a test reads, at a time that it sets."""

    def __init__(self) -> None:
        self.stream, self.seconds = io.StringIO(), Clock()
        console = make_console(self.stream, width=120)
        super().__init__(console, clock=self.seconds, now=lambda: datetime(2026, 3, 1, 14, 26, 3))

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


def test_a_step_line_is_exactly_this() -> None:
    log = Log()
    log.started(TITLE, num_steps=467, first_step=0)
    log.evaluated(EVALUATION)
    log.step(step_record(180, loss=0.742, seconds=950 / 287))
    assert log.lines == [
        "title",
        "14:26:03 eval step=0 loss=0.693 accuracy=0.512 low=0.468 high=0.556 n=500 prompts=480 margin=0.02 "
        "chosen_delta=-0.07 rejected_delta=-0.30 seconds=3.2",
        "14:26:03 step=180/467 loss=0.742 accuracy=0.631 n=128 margin=0.61 chosen_delta=-0.07 "
        "tokens_per_second=41210 eta=950s",
    ]


@pytest.mark.parametrize(
    ("steps", "seconds", "written"),
    [
        (8, 40, list(range(1, 9))),  # slow steps are all written
        (62, 0.5, [1, 11, 21, 31, 41, 51, 61, 62]),  # not more than a line in 5 s
        (1000, 1, [*range(1, 1000, 10), 1000]),  # every percent
        (10_000, 1, [*range(1, 10_000, 30), 10_000]),  # every half minute
    ],
)
def test_which_steps_are_written(steps: int, seconds: float, written: list[int]) -> None:
    log = Log()
    log.started(TITLE, num_steps=steps, first_step=0)
    for step in range(1, steps + 1):
        log.seconds.seconds += seconds
        log.step(step_record(step, seconds=seconds))
    assert [int(line.split("step=")[1].split("/")[0]) for line in log.lines if "step=" in line] == written


def test_the_whole_log_leaves_out_the_drift_until_it_was_measured_and_shows_nan() -> None:
    log = Log()
    log.note("loading \x1b[31mbuiltin:guide [b]")
    log.started(HEADER, num_steps=1, first_step=0)
    log.step(step_record(1, loss=math.nan))
    log.finished(OUTCOME)
    log.close()
    assert (
        log.stream.getvalue()
        == rf"""14:26:03 loading \x1b[31mbuiltin:guide [b]
{HEADER_LINES}14:26:03 step=1/1 loss=nan accuracy=0.631 n=128 margin=0.61 tokens_per_second=41210 eta=0s
{OUTCOME_LINES}"""
    )


def test_lines_of_a_run_count_as_something_said() -> None:
    log = Log()
    log.started(TITLE, num_steps=10, first_step=0)
    with stage("scoring pairs", 10) as scoring:
        scoring.advance(5)
        log.seconds.seconds += 20
        log.note("a note")
        log.seconds.seconds += 20
        log._pulse.beat()
        assert log.lines[-1].endswith(" a note")
        log.seconds.seconds += 20
        log._pulse.beat()
    assert " scoring pairs, 5 of 10, " in log.lines[-1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "kind"),
    [
        (Terminal(), {}, LivePanel),
        (Terminal(), {"TERM": "dumb"}, Heartbeat),  # which cannot move its cursor
        (Terminal(), {"TERM": "unknown"}, Heartbeat),
        (io.StringIO(), {}, Heartbeat),
        (io.StringIO(), {"FORCE_COLOR": "1"}, Heartbeat),  # as CI services set it: colour, but still no terminal
    ],
)
def test_a_terminal_gets_the_panel_and_everything_else_a_log(
    stream: io.StringIO, environment: dict[str, str], kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert isinstance(watch(stream), kind)


def test_without_a_stream_it_watches_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    observer = watch()
    observer.started(HEADER, num_steps=1, first_step=0)
    observer.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "LEN001 chosen is longer" in captured.err


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


def test_the_page_is_there_before_the_last_screen(run: Path, watcher: Watcher) -> None:
    observer = WithReport(watcher, run)
    observer.started(HEADER, num_steps=4, first_step=1)
    observer.evaluated(EVALUATION)
    observer.step(step_record(2))
    observer.note("as it is")
    observer.finished(OUTCOME)
    observer.close()
    assert watcher.heard == ["started simpo 4 1", "evaluated 0", "step 2", "finished 62 True", "closed"]
    assert watcher.notes == ["as it is"]


def test_a_run_that_ends_early_has_a_page_too_unless_it_never_started(run: Path, watcher: Watcher) -> None:
    observer = WithReport(watcher, run)
    observer.ended_early()  # such as: the folder holds another run
    assert not watcher.page.exists()
    assert watcher.notes == []
    observer.started(HEADER, num_steps=4, first_step=0)
    observer.ended_early()
    assert watcher.page.is_file()
    assert watcher.notes == [f"report {watcher.page}"]


def test_a_run_that_ends_while_it_loads_has_no_page(tmp_path: Path, watcher: Watcher) -> None:
    observer = WithReport(watcher, tmp_path)
    observer.started(HEADER, num_steps=4, first_step=0)
    observer.ended_early()
    assert watcher.notes == []


@pytest.mark.parametrize("error", [ZeroDivisionError("no page"), UserError("no page", "Name a folder.")])
def test_a_page_that_cannot_be_written_does_not_fail_the_run(
    error: Exception, run: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(run_page, "run_page", fail)
    observer = WithReport(watcher, run)
    observer.started(HEADER, num_steps=4, first_step=0)
    observer.finished(OUTCOME)
    observer.ended_early()
    assert watcher.heard == ["started simpo 4 0", "finished 62 False"]
    assert watcher.notes == [f"report.html was not written (no page); try: simpo report {run}"] * 2


def test_a_run_that_was_complete_gets_the_page_that_it_lacks_or_that_is_of_an_earlier_end(
    run: Path, watcher: Watcher
) -> None:
    WithReport(watcher, run).was_complete()
    assert watcher.page.is_file()
    marked = watcher.page.read_text(encoding="utf-8") + "<!-- kept -->"
    watcher.page.write_text(marked, encoding="utf-8")
    WithReport(watcher, run).was_complete()
    assert watcher.page.read_text(encoding="utf-8") == marked
    written = watcher.page.stat().st_mtime_ns
    os.utime(run / "run.json", ns=(written + 1, written + 1))
    WithReport(watcher, run).was_complete()
    assert "<!-- kept -->" not in watcher.page.read_text(encoding="utf-8")
