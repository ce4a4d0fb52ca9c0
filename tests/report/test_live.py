"""The panel: what it shows at every width, and that it leaves the terminal as it was found."""

import fcntl
import io
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from simpo_cli.report.console import make_console
from simpo_cli.report.live import LivePanel, Progress, region
from simpo_cli.report.watch import Heartbeat, watch
from simpo_cli.run.events import EvalRecord, RunHeader, RunOutcome, StepRecord


@pytest.fixture
def progress(clock: Any, step_record: Callable[..., StepRecord], evaluation: EvalRecord) -> Progress:
    """A run of 62 steps in its middle."""
    progress = Progress(num_steps=62, first_step=0, clock=clock)
    progress.evaluated(evaluation)
    for step in range(1, 32):
        clock.seconds += 2
        progress.step(step_record(step))
    return progress


def shown(progress: Progress, width: int, took_seconds: float | None = None) -> list[str]:
    return ["".join(text for text, _ in line).rstrip() for line in region(progress, width, took_seconds)]


def test_the_region_at_100_columns(progress: Progress) -> None:
    assert shown(progress, 100) == [
        "step     31/62   ━━━━━━━━━━━━━━━━━━━━────────────────────   1:02 left",
        "loss     0.277   █▇▇▆▆▅▅▄▄▃▃▃▂▂▂▂▂▁▁▁",
        "train    accuracy 0.631 (n 128)   margin 0.61",
        "held out accuracy 0.512 (0.468 to 0.556, n 500)   chosen drift -0.07 nats/token   at step 0",
        "speed    41.2k tokens/s   12.3 GB",
    ]


def test_the_region_at_60_columns(progress: Progress) -> None:
    assert shown(progress, 60) == [
        "step     31/62   ━━━━━━━━━━━━━━━───────────────   1:02 left",
        "loss     0.277   █▇▆▆▅▄▄▃▃▂▂▂▁▁▁",
        "train    accuracy 0.631 (n 128)   margin 0.61",
        "held out accuracy 0.512 (0.468 to 0.556, n 500)",
        "         chosen drift -0.07 nats/token   at step 0",
        "speed    41.2k tokens/s   12.3 GB",
    ]


def test_the_region_at_40_columns(progress: Progress) -> None:
    assert shown(progress, 40) == [
        "step     31/62   ━━━━━─────   1:02 left",
        "loss     0.277   █▅▃▂▁",
        "train    accuracy 0.631 (n 128)",
        "         margin 0.61",
        "held out accuracy 0.512",
        "         (0.468 to 0.556, n 500)",
        "         chosen drift -0.07 nats/token",
        "         at step 0",
        "speed    41.2k tokens/s   12.3 GB",
    ]


def test_before_the_first_step_it_says_how_long_it_has_been_starting(clock: Any) -> None:
    progress = Progress(num_steps=62, first_step=0, clock=clock)
    clock.seconds += 12
    assert shown(progress, 60) == ["step      0/62   ──────────────────────────   starting, 0:12"]


def test_after_the_last_step_it_is_finishing_and_then_done(
    progress: Progress, step_record: Callable[..., StepRecord]
) -> None:
    progress.step(step_record(62))
    assert shown(progress, 100)[0].endswith("━   finishing")
    assert shown(progress, 100, took_seconds=130.0)[0].endswith("━   in 2:10")


def test_the_time_left_runs_down_within_a_long_step_and_ignores_one_slow_step(
    clock: Any, step_record: Callable[..., StepRecord]
) -> None:
    progress = Progress(num_steps=10, first_step=0, clock=clock)
    for step, seconds in ((1, 300.0), (2, 60.0), (3, 60.0)):
        clock.seconds += seconds
        progress.step(step_record(step, seconds=seconds))
    assert progress.seconds_left == 420
    clock.seconds += 45
    assert progress.seconds_left == 375
    clock.seconds += 500  # a step that takes longer than the median does not eat up the others
    assert progress.seconds_left == 360


def test_a_resumed_run_starts_where_it_was(clock: Any, step_record: Callable[..., StepRecord]) -> None:
    progress = Progress(num_steps=40, first_step=20, clock=clock)
    assert shown(progress, 100)[0].startswith("step     20/40   ━━━━━━━━━━━━━━━━━━━━─")
    progress.step(step_record(21))
    assert shown(progress, 100)[1] == "loss     0.360" + " " * 23 + "▁"


def test_the_curve_is_the_mean_loss_of_equal_parts_of_the_run(
    clock: Any, step_record: Callable[..., StepRecord]
) -> None:
    long, short = (Progress(num_steps=steps, first_step=0, clock=clock) for steps in (120, 4))
    for step in range(1, 91):
        long.step(replace(step_record(step), loss=float(step)))
    assert long.loss_curve(40) == [3 * cell + 2 for cell in range(30)]
    for step in (1, 2, 3):
        short.step(replace(step_record(step), loss=float(step)))
    assert short.loss_curve(8) == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(("num_steps", "loss"), [(5, 1.789), (467, 0.742), (467, 123.456), (100_000, 0.1)])
def test_the_curve_stands_right_under_the_bar(
    num_steps: int, loss: float, clock: Any, step_record: Callable[..., StepRecord]
) -> None:
    progress = Progress(num_steps=num_steps, first_step=0, clock=clock)
    assert shown(progress, 100)[0].index("─") >= len("loss     0.742   ")
    progress.step(replace(step_record(1), loss=loss))
    steps, losses, *_ = shown(progress, 100)
    assert min(steps.find(character) for character in "━─" if character in steps) == losses.index("▁")


@pytest.mark.parametrize("steps", [1, 3, 119, 121, 1_000_000])
def test_runs_of_any_length_have_a_curve_as_long_as_their_bar(
    steps: int, clock: Any, step_record: Callable[..., StepRecord]
) -> None:
    progress = Progress(num_steps=steps, first_step=0, clock=clock)
    for step in range(max(1, steps - 500), steps + 1):
        progress.step(step_record(step))
    assert len(progress.loss_curve(40)) == 40
    assert len(progress.loss_curve(7)) == 7


@pytest.mark.parametrize("width", [10, 20, 40, 60, 100, 300])
def test_a_loss_that_is_not_finite_and_huge_numbers_do_not_break_it(
    width: int, clock: Any, step_record: Callable[..., StepRecord], evaluation: EvalRecord
) -> None:
    progress = Progress(num_steps=10_000_000, first_step=0, clock=clock)
    progress.step(replace(step_record(1), loss=float("nan"), rewards_margins=-1e30, tokens_per_second=float("inf")))
    progress.evaluated(replace(evaluation, accuracy_low=float("nan")))
    stream = io.StringIO()
    console = make_console(stream, width=width, height=30)
    panel = LivePanel(console, clock=clock)
    panel._progress = progress
    console.print(panel._region())
    assert all(len(line) <= width for line in stream.getvalue().splitlines())


# ------------------------------------------------------------------------------------------------------- whole screen


def terminal(stream: io.StringIO, width: int) -> Any:
    return make_console(stream, width=width, height=30, force_terminal=True)


def a_run(panel: LivePanel, clock: Any, step_record: Callable[..., StepRecord], evaluation: EvalRecord) -> None:
    for step in range(1, 63):
        clock.seconds += 2
        panel.step(step_record(step))
        if step == 20:
            panel.note("loss 4.2 \x1b[31m[red]is high")
    panel.evaluated(replace(evaluation, step=62))


def test_the_whole_screen_of_a_run(
    clock: Any,
    screen: Callable[[int], Any],
    step_record: Callable[..., StepRecord],
    evaluation: EvalRecord,
    header: RunHeader,
    outcome: RunOutcome,
) -> None:
    stream = io.StringIO()
    panel = LivePanel(terminal(stream, 100), clock=clock)
    panel.started(header, num_steps=62, first_step=0)
    a_run(panel, clock, step_record, evaluation)
    assert not screen(100).feed(stream.getvalue()).cursor_is_shown
    panel.finished(outcome)
    panel.close()
    seen = screen(100).feed(stream.getvalue())
    assert seen.cursor_is_shown
    assert (
        seen.text
        == r"""simpo 0.1.0 · train demo · cpu, 2 threads, float32 · no network used
loss     SimPO, sigmoid · beta 2.0 · gamma 1.0 (gamma/beta 0.5) · label smoothing off · SFT term off
model    builtin:guide · 1.9 M parameters, all trained
data     2,000 pairs to train, 500 held out by prompt
         LEN001 chosen is longer in 80.1 % of training pairs

loss 4.2 \x1b[31m[red]is high
step     62/62   ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━   in 0:38
loss     0.177   █▇▇▆▆▆▅▅▅▄▄▄▄▃▃▃▃▃▂▂▂▂▂▂▂▂▂▂▁▁▁▁▁▁▁▁▁▁▁▁
train    accuracy 0.631 (n 128)   margin 0.61
held out accuracy 0.512 (0.468 to 0.556, n 500)   chosen drift -0.07 nats/token   at step 62
speed    41.2k tokens/s   12.3 GB

                    before                  after
held-out accuracy   51.2 % (46.8 to 55.6)   96.4 % (94.4 to 97.7)   n = 500 pairs, one seed
length-balanced     50.9 %                  95.8 %
mean margin         0.02                    3.11

"How do I invite a teammate?"
  before  Teams are great.
  after   Open Settings, choose People, press Invite.

model   runs/demo/model
next    simpo stats builtin:guide        the audit of the data that this run used
        simpo recipe copy smollm2-135m   a recipe for your own pairs"""
    )


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_screen_never_wraps_and_says_the_same(
    width: int,
    clock: Any,
    screen: Callable[[int], Any],
    step_record: Callable[..., StepRecord],
    evaluation: EvalRecord,
    header: RunHeader,
    outcome: RunOutcome,
) -> None:
    stream = io.StringIO()
    panel = LivePanel(terminal(stream, width), clock=clock)
    panel.started(header, num_steps=62, first_step=0)
    a_run(panel, clock, step_record, evaluation)
    panel.finished(outcome)
    seen = screen(width).feed(stream.getvalue())  # fails if a line is longer than the screen
    for text in ("62/62", "accuracy 0.631 (n 128)", "margin 0.61", "chosen drift -0.07 nats/token", "41.2k tokens/s"):
        assert seen.text.count(text) == 1
    for text in ("51.2 % (46.8 to 55.6)", "96.4 % (94.4 to 97.7)", "n = 500 pairs, one seed", "runs/demo/model"):
        assert text in seen.text


def test_ascii_and_no_color(
    clock: Any,
    screen: Callable[[int], Any],
    step_record: Callable[..., StepRecord],
    evaluation: EvalRecord,
    header: RunHeader,
    outcome: RunOutcome,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii", write_through=True)
    panel = LivePanel(make_console(stream, width=100, height=30, force_terminal=True), clock=clock)
    panel.started(header, num_steps=62, first_step=0)
    a_run(panel, clock, step_record, evaluation)
    panel.finished(outcome)
    text = written.getvalue().decode("ascii")
    assert "\x1b[3" not in text  # colours are 3x
    assert "\nstep     62/62   " + "=" * 40 + "   in 0:38\n" in screen(100).feed(text).text


def test_closing_early_leaves_the_last_state_and_the_cursor(
    clock: Any, screen: Callable[[int], Any], step_record: Callable[..., StepRecord], header: RunHeader
) -> None:
    stream = io.StringIO()
    panel = LivePanel(terminal(stream, 100), clock=clock)
    panel.started(header, num_steps=62, first_step=0)
    panel.step(step_record(7))
    panel.close()
    panel.close()
    seen = screen(100).feed(stream.getvalue())
    assert seen.cursor_is_shown
    assert "step      7/62" in seen.text
    assert stream.getvalue().endswith("\n\x1b[?25h")


def test_a_dry_run_takes_no_step_and_has_no_bar(clock: Any, screen: Callable[[int], Any], header: RunHeader) -> None:
    stream = io.StringIO()
    panel = LivePanel(terminal(stream, 100), clock=clock)
    panel.started(header, num_steps=0, first_step=0)
    panel.note("dry run: no run was written")
    panel.close()
    seen = screen(100).feed(stream.getvalue())
    assert seen.cursor_is_shown
    assert seen.text.endswith("dry run: no run was written")
    assert "step" not in seen.text


def test_a_panel_that_never_started_closes_quietly(clock: Any) -> None:
    stream = io.StringIO()
    LivePanel(terminal(stream, 100), clock=clock).close()
    assert stream.getvalue() == ""


# --------------------------------------------------------------------------------------------------- a real terminal

PROGRAM = """
import sys
from simpo_cli.report.watch import watch
from simpo_cli.run.events import Note, RunHeader
panel = watch()
panel.started(RunHeader("a title", (Note("loss", "SimPO"),)), num_steps=10, first_step=0)
try:
    sys.stderr.write("a library's warning\\n")
    raise RuntimeError("out of memory")
finally:
    CLOSE
"""


@pytest.mark.parametrize("close", ["panel.close()", "pass"])
def test_an_exception_leaves_a_real_terminal_with_its_cursor(close: str, screen: Callable[[int], Any]) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 60, 0, 0))
    before = termios.tcgetattr(ours)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("CLOSE", close)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=dict(os.environ),  # without the COLUMNS that readline sets behind Python's back
    )
    read = b""
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.1)[0]:
            read += os.read(ours, 65536)
    assert termios.tcgetattr(ours) == before
    os.close(theirs)
    os.close(ours)
    text = read.decode().replace("\r\n", "\n")
    assert process.returncode == 1
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    seen = screen(60).feed(text).text
    for part in ("a title\n", "loss     SimPO\n", "a library's warning\n", "RuntimeError: out of memory"):
        assert part in seen
    assert seen.count("step      0/10") == 1


# -------------------------------------------------------------------------------------------------------------- watch


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_the_panel_and_everything_else_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(watch(Terminal()), LivePanel)
    assert isinstance(watch(io.StringIO()), Heartbeat)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as CI services set it: colour, but still no terminal
    assert isinstance(watch(io.StringIO()), Heartbeat)


@pytest.mark.parametrize("name", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_gets_a_log(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", name)
    assert isinstance(watch(Terminal()), Heartbeat)


def test_without_a_stream_it_watches_on_stderr(capsys: pytest.CaptureFixture[str], header: RunHeader) -> None:
    observer = watch()
    observer.started(header, num_steps=1, first_step=0)
    observer.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "LEN001 chosen is longer" in captured.err


def test_an_alert_stands_out_and_wraps_under_its_own_text() -> None:
    stream = io.StringIO()
    panel = LivePanel(make_console(stream, width=40))
    panel.note("HEA004 step 201: the gradient norm is 4.8, 16 times the 0.29 of the steps before", "HEA004")
    assert stream.getvalue().splitlines() == [
        "HEA004 step 201: the gradient norm is",
        "       4.8, 16 times the 0.29 of the",
        "       steps before",
    ]
