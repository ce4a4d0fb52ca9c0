"""The panel at every width, before and after on the screen, and a terminal that is left as it was found."""

import fcntl
import io
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from simpo_cli.report.console import make_console
from simpo_cli.report.live import LivePanel, Progress, live_stage_line, print_header, print_outcome, region, working
from simpo_cli.run.events import Note, RunHeader
from simpo_cli.stages import stage
from simpo_cli.table import Table
from tests.report.screen import (
    EVALUATION,
    HEADER,
    HEADER_LINES,
    OUTCOME,
    OUTCOME_LINES,
    Clock,
    Screen,
    printed,
    step_record,
)


def progress_of(num_steps: int, *, first_step: int = 0, clock: Clock | None = None) -> Progress:
    return Progress(num_steps=num_steps, first_step=first_step, clock=clock or Clock())


def shown(progress: Progress, width: int = 100, took_seconds: float | None = None) -> list[str]:
    return ["".join(text for text, _ in line).rstrip() for line in region(progress, width, took_seconds)]


@pytest.fixture
def halfway() -> Progress:
    """A run of 62 steps in its middle."""
    clock = Clock()
    progress = progress_of(62, clock=clock)
    progress.evaluated(EVALUATION)
    for step in range(1, 32):
        clock.seconds += 2
        progress.step(step_record(step))
    return progress


REGIONS = {
    100: """\
step     31/62   ━━━━━━━━━━━━━━━━━━━━────────────────────   1:02 left
loss     0.277   █▇▇▆▆▅▅▄▄▃▃▃▂▂▂▂▂▁▁▁
train    accuracy 0.631 (n 128)   margin 0.61
held out accuracy 0.512 (0.468 to 0.556, n 500)   chosen drift -0.07 nats/token   at step 0
speed    41.2k tokens/s   12.3 GB""",
    60: """\
step     31/62   ━━━━━━━━━━━━━━━───────────────   1:02 left
loss     0.277   █▇▆▆▅▄▄▃▃▂▂▂▁▁▁
train    accuracy 0.631 (n 128)   margin 0.61
held out accuracy 0.512 (0.468 to 0.556, n 500)
         chosen drift -0.07 nats/token   at step 0
speed    41.2k tokens/s   12.3 GB""",
    40: """\
step     31/62   ━━━━━─────   1:02 left
loss     0.277   █▅▃▂▁
train    accuracy 0.631 (n 128)
         margin 0.61
held out accuracy 0.512
         (0.468 to 0.556, n 500)
         chosen drift -0.07 nats/token
         at step 0
speed    41.2k tokens/s   12.3 GB""",
}


@pytest.mark.parametrize("width", REGIONS)
def test_the_region_at_every_width(width: int, halfway: Progress) -> None:
    assert shown(halfway, width) == REGIONS[width].splitlines()


def test_before_the_first_step_it_is_starting_and_after_the_last_finishing_and_then_done(halfway: Progress) -> None:
    clock = Clock()
    progress = progress_of(62, clock=clock)
    clock.seconds += 12
    assert shown(progress, 60) == ["step      0/62   ──────────────────────────   starting, 0:12"]
    halfway.step(step_record(62))
    assert shown(halfway)[0].endswith("━   finishing")
    assert shown(halfway, took_seconds=130.0)[0].endswith("━   in 2:10")


def test_the_time_left_runs_down_within_a_long_step_and_ignores_one_slow_step() -> None:
    clock = Clock()
    progress = progress_of(10, clock=clock)
    for step, seconds in ((1, 300.0), (2, 60.0), (3, 60.0)):
        clock.seconds += seconds
        progress.step(step_record(step, seconds=seconds))
    assert progress.seconds_left == 420
    clock.seconds += 45
    assert progress.seconds_left == 375
    clock.seconds += 500  # a step that takes longer than the median does not eat up the others
    assert progress.seconds_left == 360


def test_a_resumed_run_starts_where_it_was() -> None:
    progress = progress_of(40, first_step=20)
    assert shown(progress)[0].startswith("step     20/40   ━━━━━━━━━━━━━━━━━━━━─")
    progress.step(step_record(21))
    assert shown(progress)[1] == "loss     0.360" + " " * 23 + "▁"


def test_the_curve_is_the_mean_loss_of_equal_parts_of_the_run() -> None:
    long, short = progress_of(120), progress_of(4)
    for step in range(1, 91):
        long.step(step_record(step, loss=float(step)))
    assert long.loss_curve(40) == [3 * cell + 2 for cell in range(30)]
    for step in (1, 2, 3):
        short.step(step_record(step, loss=float(step)))
    assert short.loss_curve(8) == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(("num_steps", "loss"), [(5, 1.789), (467, 0.742), (467, 123.456), (100_000, 0.1)])
def test_the_curve_stands_right_under_the_bar(num_steps: int, loss: float) -> None:
    progress = progress_of(num_steps)
    assert shown(progress)[0].index("─") >= len("loss     0.742   ")
    progress.step(step_record(1, loss=loss))
    steps, losses, *_ = shown(progress)
    assert min(steps.find(character) for character in "━─" if character in steps) == losses.index("▁")


@pytest.mark.parametrize("steps", [1, 3, 119, 121, 1_000_000])
def test_runs_of_any_length_have_a_curve_as_long_as_their_bar(steps: int) -> None:
    progress = progress_of(steps)
    for step in range(max(1, steps - 500), steps + 1):
        progress.step(step_record(step))
    assert len(progress.loss_curve(40)) == 40
    assert len(progress.loss_curve(7)) == 7


@pytest.mark.parametrize("width", [10, 20, 40, 60, 100, 300])
def test_a_loss_that_is_not_finite_and_huge_numbers_do_not_break_it(width: int) -> None:
    stream = io.StringIO()
    console = make_console(stream, width=width, height=30)
    panel = LivePanel(console, clock=Clock())
    panel._progress = progress_of(10_000_000)
    panel.step(step_record(1, loss=float("nan"), rewards_margins=-1e30, tokens_per_second=float("inf")))
    panel.evaluated(replace(EVALUATION, accuracy_low=float("nan")))
    console.print(panel._region())
    assert all(len(line) <= width for line in stream.getvalue().splitlines())


class Panel(LivePanel):
    """A panel on a terminal of so many columns."""

    def __init__(self, width: int = 100, stream: io.StringIO | io.TextIOWrapper | None = None) -> None:
        self.width, self.seconds, self.stream = width, Clock(), stream or io.StringIO()
        console = make_console(self.stream, width=width, height=30, force_terminal=True)
        super().__init__(console, clock=self.seconds)

    def seen(self) -> Screen:
        assert isinstance(self.stream, io.StringIO)
        return Screen(self.width, self.stream.getvalue())

    def show_steps(self) -> None:
        """A run up to its last step."""
        self.started(HEADER, num_steps=62, first_step=0)
        for step in range(1, 63):
            self.seconds.seconds += 2
            self.step(step_record(step))
            if step == 20:
                self.note("loss 4.2 \x1b[31m[red]is high")
        self.evaluated(replace(EVALUATION, step=62))


def test_the_whole_screen_of_a_run() -> None:
    panel = Panel()
    panel.show_steps()
    assert not panel.seen().cursor_is_shown
    panel.finished(OUTCOME)
    panel.close()
    seen = panel.seen()
    assert seen.cursor_is_shown
    assert (
        seen.text + "\n"
        == rf"""{HEADER_LINES}
loss 4.2 \x1b[31m[red]is high
step     62/62   ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━   in 0:38
loss     0.177   █▇▇▆▆▆▅▅▅▄▄▄▄▃▃▃▃▃▂▂▂▂▂▂▂▂▂▂▁▁▁▁▁▁▁▁▁▁▁▁
train    accuracy 0.631 (n 128)   margin 0.61
held out accuracy 0.512 (0.468 to 0.556, n 500)   chosen drift -0.07 nats/token   at step 62
speed    41.2k tokens/s   12.3 GB
{OUTCOME_LINES}"""
    )


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_screen_never_wraps_and_says_the_same(width: int) -> None:
    panel = Panel(width)
    panel.show_steps()
    panel.finished(OUTCOME)
    seen = panel.seen().text  # fails if a line is longer than the screen
    for text in ("62/62", "accuracy 0.631 (n 128)", "margin 0.61", "chosen drift -0.07 nats/token", "41.2k tokens/s"):
        assert seen.count(text) == 1
    for text in ("51.2 % (46.8 to 55.6)", "96.4 % (94.4 to 97.7)", "n = 500 pairs, one seed", "runs/demo/model"):
        assert text in seen


def test_ascii_and_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    written = io.BytesIO()
    panel = Panel(stream=io.TextIOWrapper(written, encoding="ascii", write_through=True))
    panel.show_steps()
    panel.finished(OUTCOME)
    text = written.getvalue().decode("ascii")
    assert "\x1b[3" not in text  # colours are 3x
    assert "\nstep     62/62   " + "=" * 40 + "   in 0:38\n" in Screen(100, text).text


def test_closing_early_leaves_the_last_state_and_the_cursor() -> None:
    panel = Panel()
    panel.close()  # it was never started
    assert panel.stream.getvalue() == ""  # type: ignore[union-attr]
    panel.started(HEADER, num_steps=62, first_step=0)
    panel.step(step_record(7))
    panel.close()
    panel.close()
    seen = panel.seen()
    assert seen.cursor_is_shown
    assert "step      7/62" in seen.text


def test_a_dry_run_takes_no_step_and_has_no_bar() -> None:
    panel = Panel()
    panel.started(HEADER, num_steps=0, first_step=0)
    panel.note("dry run: no run was written")
    panel.close()
    seen = panel.seen()
    assert seen.cursor_is_shown
    assert seen.text.endswith("dry run: no run was written")
    assert "step" not in seen.text


def test_an_alert_stands_out_and_wraps_under_its_own_text() -> None:
    stream = io.StringIO()
    panel = LivePanel(make_console(stream, width=40))
    panel.note("HEA004 step 201: the gradient norm is 4.8, 16 times the 0.29 of the steps before", "HEA004")
    assert stream.getvalue().splitlines() == [
        "HEA004 step 201: the gradient norm is",
        "       4.8, 16 times the 0.29 of the",
        "       steps before",
    ]


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
def test_an_exception_leaves_a_real_terminal_with_its_cursor(close: str) -> None:
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
    seen = Screen(60, text).text
    for part in ("a title\n", "loss     SimPO\n", "a library's warning\n", "RuntimeError: out of memory"):
        assert part in seen
    assert seen.count("step      0/10") == 1


def test_a_terminal_shows_what_is_being_done_in_one_line_that_is_wiped_away() -> None:
    stream = io.StringIO()
    live = live_stage_line(make_console(stream, width=40, height=30, force_terminal=True))
    with live, stage("a \x1b[31m" + "a" * 80):
        live.refresh()
        seen = Screen(40, stream.getvalue()).text
        assert seen.startswith("a \\x1b[31maaa")
        assert "\n" not in seen
    assert Screen(40, stream.getvalue()).text == ""


def test_the_panel_shows_it_before_the_first_screen_and_below_the_numbers() -> None:
    panel = Panel(60)
    with stage("tokenizing pairs"):
        panel.open()
        assert panel.seen().text.startswith("tokenizing pairs, ")
        panel.started(RunHeader("title", ()), num_steps=10, first_step=0)
    with stage("scoring the start model"), stage("scoring pairs", 20):
        panel._live.refresh()  # type: ignore[union-attr]
        seen = panel.seen().text
    assert "tokenizing" not in seen
    assert "\nnow      scoring the start model: scoring pairs, 0 of 20, " in seen
    panel.close()


def test_a_command_in_a_pipe_writes_nothing_for_work_that_is_soon_done(capsys: pytest.CaptureFixture[str]) -> None:
    with working(), stage("loading the weights"):
        assert not sys.stderr.isatty()
    assert capsys.readouterr() == ("", "")


def test_a_header_is_wrapped_under_its_own_text_and_says_what_it_was_given() -> None:
    lines = (Note("data", "one two three four five six seven"), Note("", "LEN001 [x]"), Note("held-out set", "\x1b[1m"))
    assert (
        printed(print_header, RunHeader("a · title", lines), width=40)
        == r"""a · title
data         one two three four five six
             seven
             LEN001 [x]
held-out set \x1b[1m
"""
    )


def test_no_table_and_no_answers_leave_where_and_next() -> None:
    bare = replace(OUTCOME, table=Table(("before", "after"), []), answers=(), next_commands=())
    assert printed(print_outcome, bare).split() == ["model", "runs/demo/model"]


def test_paths_and_commands_stay_whole_on_a_narrow_terminal() -> None:
    path = "/home/somebody/projects/" + "long/" * 20 + "model"
    command = "simpo eval runs/demo --json " + "data.eval=" + "x" * 60
    outcome = replace(OUTCOME, model_dir=path, next_commands=((command, "what it does"),))
    text = printed(print_outcome, outcome, width=40)
    assert f"model   {path}\n" in text
    assert f"next    {command}\n          what it does\n" in text


def test_the_report_is_named_when_there_is_one(tmp_path: Path) -> None:
    here = replace(OUTCOME, run_dir=str(tmp_path))
    assert "report  " not in printed(print_outcome, here)
    (tmp_path / "report.html").write_text("<html>")
    assert f"report  {tmp_path}/report.html\n" in printed(print_outcome, here)


@pytest.mark.parametrize("width", [40, 60, 100])
def test_answers_are_wrapped_escaped_and_cut(width: int) -> None:
    answers = (
        ("[bold]How?[/bold] \x1b[2J\n" + "why " * 100, "中文" * 200, "1. Open\n\n2.\tChoose \u202eabc"),
        ("", "", "w" * 500),
    )
    text = printed(print_outcome, replace(OUTCOME, answers=answers), width=width)
    answered = text[text.index('"') : text.index("model ")]
    assert all(cell_len(line) <= width for line in answered.splitlines())
    assert answered.startswith(r'"[bold]How?[/bold] \x1b[2J\nwhy')
    assert "  after   1. Open\n          2.    Choose \\u202eabc\n" in answered
    assert "  before  (empty)\n" in answered
    assert "more characters" in answered
    assert len(answered.splitlines()) < 30


def test_an_answer_that_is_the_same_before_and_after_is_shown_once_and_counted() -> None:
    same = replace(OUTCOME, answers=(("A?", "So.", "So."), ("B?", "No.", "Yes."), ("C?", "Hm.", "Hm.")))
    text = printed(print_outcome, same)
    assert '"A?"\n  both    So.\n' in text
    assert '"B?"\n  before  No.\n  after   Yes.\n' in text
    assert "\n2 of 3 answers are the same before and after.\n" in text
    assert "same before and after" not in printed(print_outcome, OUTCOME)
