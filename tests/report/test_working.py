"""What is being done, on a terminal and in a log."""

import io
import itertools
import sys
from typing import Any

import pytest

from simpo_cli.report.console import make_console
from simpo_cli.report.live import LivePanel, live_stage_line, working
from simpo_cli.report.watch import Heartbeat
from simpo_cli.run.events import RunHeader
from simpo_cli.stages import SECONDS_OF_SILENCE, Pulse, stage


def test_a_log_is_never_silent_for_longer_than_half_a_minute(clock: Any) -> None:
    said: list[str] = []
    pulse = Pulse(said.append, clock=clock)
    spoken_at = [clock()]
    with stage("loading the weights"):
        for _ in range(300):
            clock.seconds += 1
            before = len(said)
            pulse.beat()
            if len(said) > before:
                spoken_at.append(clock())
    gaps = [later - earlier for earlier, later in itertools.pairwise(spoken_at)]
    assert set(gaps) == {SECONDS_OF_SILENCE}
    assert SECONDS_OF_SILENCE < 30
    assert all(line.startswith("loading the weights, ") for line in said)


def test_a_log_that_says_something_else_gets_no_beat(clock: Any) -> None:
    said: list[str] = []
    pulse = Pulse(said.append, clock=clock)
    with stage("pairs of step 1", 8):
        for _ in range(100):
            clock.seconds += 10
            pulse.heard()
            pulse.beat()
    assert said == []


def test_between_two_stages_it_says_that_it_is_still_there(clock: Any) -> None:
    said: list[str] = []
    pulse = Pulse(said.append, clock=clock)
    clock.seconds += 40
    pulse.beat()
    assert said == ["working, 0:40 so far"]


def test_lines_of_a_run_count_as_something_said(clock: Any) -> None:
    stream = io.StringIO()
    heartbeat = Heartbeat(make_console(stream, width=120), clock=clock)
    heartbeat.started(RunHeader("title", ()), num_steps=10, first_step=0)
    with stage("scoring pairs", 10) as scoring:
        scoring.advance(5)
        clock.seconds += 20
        heartbeat.note("a note")
        clock.seconds += 20
        heartbeat._pulse.beat()
        assert stream.getvalue().splitlines()[-1].endswith(" a note")
        clock.seconds += 20
        heartbeat._pulse.beat()
    assert " scoring pairs, 5 of 10, " in stream.getvalue().splitlines()[-1]


def test_a_terminal_shows_it_in_one_line_that_is_wiped_away(screen: Any) -> None:
    stream = io.StringIO()
    live, name = (
        live_stage_line(make_console(stream, width=40, height=30, force_terminal=True)),
        "a \x1b[31m" + "a" * 80,
    )
    with live, stage(name):
        live.refresh()
        seen = screen(40).feed(stream.getvalue()).text
        assert seen.startswith("a \\x1b[31maaa")
        assert "\n" not in seen
    assert screen(40).feed(stream.getvalue()).text == ""


def test_the_panel_shows_it_before_the_first_screen_and_below_the_numbers(clock: Any, screen: Any) -> None:
    stream = io.StringIO()
    panel = LivePanel(make_console(stream, width=60, height=30, force_terminal=True), clock=clock)
    with stage("tokenizing pairs"):
        panel.open()
        assert screen(60).feed(stream.getvalue()).text.startswith("tokenizing pairs, ")
        panel.started(RunHeader("title", ()), num_steps=10, first_step=0)
    with stage("scoring the start model"), stage("scoring pairs", 20):
        panel._live.refresh()  # type: ignore[union-attr]
        seen = screen(60).feed(stream.getvalue()).text
    assert "tokenizing" not in seen
    assert "\nnow      scoring the start model: scoring pairs, 0 of 20, " in seen
    panel.close()


def test_a_command_in_a_pipe_writes_nothing_for_work_that_is_soon_done(capsys: pytest.CaptureFixture[str]) -> None:
    with working(), stage("loading the weights"):
        assert not sys.stderr.isatty()
    assert capsys.readouterr() == ("", "")
