"""A command and a run on a terminal: what is being done in one line that is redrawn, or a run's region, redrawn in
place four times a second at most, between what is known before the first step and what there is after the last.
"""

import atexit
import itertools
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from statistics import median

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from simpo_cli import stages
from simpo_cli.formatting import compact, duration, fixed
from simpo_cli.report.console import (
    GAP,
    Console,
    bar,
    encodable,
    err,
    padded,
    print_examples,
    print_table,
    print_wrapped,
    printable,
    sparkline,
)
from simpo_cli.run.events import EvalRecord, RunHeader, RunOutcome, StepRecord
from simpo_cli.stages import Pulse

REFRESHES_PER_SECOND = 4
LABEL_WIDTH = 9

Line = list[tuple[str, str]]  # pieces of text with their styles
Field = tuple[str, str, str]  # name, value, remark


def live_stage_line(console: Console) -> Live:
    """What is being done in one line, redrawn in place until it is stopped, which wipes it away."""
    doing = stages.doing()
    return _live(console, lambda: _cropped(console, [(printable(doing()), "dim")]), transient=True)


def _live(console: Console, draw: Callable[[], RenderableType], *, transient: bool = False) -> Live:
    return Live(
        console=console,
        get_renderable=draw,
        refresh_per_second=REFRESHES_PER_SECOND,
        redirect_stdout=sys.stdout.isatty(),  # data on its way to a file stays on its way
        transient=transient,
        vertical_overflow="crop",
    )


def _cropped(console: Console, pieces: Line) -> Text:
    shown = ((encodable(text, console.encoding), style) for text, style in pieces)
    line = Text.assemble(*shown, no_wrap=True, overflow="crop")
    line.truncate(console.width, overflow="crop")
    return line


@contextmanager
def working() -> Iterator[None]:
    """Show on stderr what is being done within the block."""
    if sys.stderr.isatty() and err.is_interactive:
        with live_stage_line(err) as live:
            live.refresh()
            yield
        return
    with Pulse(lambda text: err.print(f"{datetime.now():%H:%M:%S} {printable(text)}", soft_wrap=True)):
        yield


def print_header(console: Console, header: RunHeader) -> None:
    """The title, then a label and a text a line: loss, model, data, plan."""
    print_wrapped(console, Text(), header.title, style="bold")
    width = max([LABEL_WIDTH, *(cell_len(line.label) + 1 for line in header.lines)])
    for line in header.lines:
        print_wrapped(console, Text(printable(line.label).ljust(width), "dim"), line.text)


def print_outcome(console: Console, outcome: RunOutcome) -> None:
    """The table of before and after, the answers before and after, where things are and what to type next."""
    console.print()
    if outcome.table.rows:
        print_table(console, outcome.table, styles=("", "bold"))
    for question, before, after in outcome.answers:
        console.print()
        print_examples(console, question, {"before": before, "after": after})
    if same := sum(before == after for _, before, after in outcome.answers):
        console.print()
        count = f"{same} of {len(outcome.answers)} answers are" if same > 1 else "1 answer is"
        print_wrapped(console, Text(), f"{count} the same before and after.", style="dim")
    console.print()
    _print_whole(console, Text("model   ", "dim"), outcome.model_dir)
    report = os.path.join(outcome.run_dir, "report.html")
    if os.path.isfile(report):
        _print_whole(console, Text("report  ", "dim"), report)
    print_next(console, outcome.next_commands)


def print_next(console: Console, commands: Sequence[tuple[str, str]]) -> None:
    """What to type next, a command and what it does a line; below one another where they do not fit."""
    lead = Text("next    ", "dim")
    shown = [(printable(command), printable(purpose)) for command, purpose in commands]
    width = max((cell_len(command) for command, _ in shown), default=0) + GAP
    fits = all(lead.cell_len + width + cell_len(purpose) <= console.width for _, purpose in shown)
    for number, (command, purpose) in enumerate(shown):
        label = lead if number == 0 else Text(" " * lead.cell_len)
        if fits:
            _print_whole(console, label, padded(command, width), purpose)
        else:
            _print_whole(console, label, command)
            print_wrapped(console, Text(" " * (lead.cell_len + 2)), purpose, style="dim")


def _print_whole(console: Console, lead: Text, text: str, remark: str = "") -> None:
    """A path or command on one line, however narrow the terminal, so that it can be copied."""
    line = Text.assemble(lead, encodable(printable(text), console.encoding), (remark, "dim"))
    line.rstrip()
    console.print(line, soft_wrap=True)


LOSS_BINS = 120
RECENT_STEPS = 32


class Progress:
    """The latest records, the time left and the loss curve.

    Another thread may read while the run writes: attributes are replaced whole, and the bins of the curve are of a
    fixed number. `first_step` steps were done already when it started, `clock` gives seconds from any fixed moment.
    """

    def __init__(self, *, num_steps: int, first_step: int, clock: Callable[[], float]) -> None:
        self.num_steps, self.first_step = num_steps, first_step
        self.record: StepRecord | None = None
        self.evaluation: EvalRecord | None = None
        self._clock = clock
        self._started_at = self._last_step_at = clock()
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._seconds_per_step = math.nan
        self._loss_sums = [0.0] * LOSS_BINS  # of the steps that lie in each part of the run
        self._loss_counts = [0] * LOSS_BINS

    @property
    def steps_done(self) -> int:
        return self.record.step if self.record else self.first_step

    @property
    def seconds_so_far(self) -> float:
        return self._clock() - self._started_at

    @property
    def seconds_left(self) -> float:
        """Steps to come at the median pace of the recent ones, less what the current one has already taken."""
        steps_left = max(0, self.num_steps - self.steps_done)
        into_this_step = min(self._clock() - self._last_step_at, self._seconds_per_step)
        return max(0.0, steps_left * self._seconds_per_step - into_this_step) if steps_left else 0.0

    def step(self, record: StepRecord) -> None:
        self._recent.append(record.seconds)
        self._seconds_per_step = median(self._recent)
        self._last_step_at = self._clock()
        if math.isfinite(record.loss):
            first_bin = LOSS_BINS * (record.step - 1) // self.num_steps
            end_bin = LOSS_BINS * record.step // self.num_steps
            for number in range(first_bin, min(max(end_bin, first_bin + 1), LOSS_BINS)):
                self._loss_sums[number] += record.loss
                self._loss_counts[number] += 1
        self.record = record

    def evaluated(self, record: EvalRecord) -> None:
        self.evaluation = record
        self._last_step_at = self._clock()  # the time an evaluation takes is not time spent on the next step

    def loss_curve(self, cells: int) -> list[float]:
        """Mean loss of each of `cells` equal parts of the run, as far as it has come; NaN where no step was seen."""
        edges = [LOSS_BINS * cell // cells for cell in range(cells + 1)]
        sums = [sum(self._loss_sums[low:high]) for low, high in itertools.pairwise(edges)]
        counts = [sum(self._loss_counts[low:high]) for low, high in itertools.pairwise(edges)]
        seen = max((cell + 1 for cell, count in enumerate(counts) if count), default=0)
        return [total / count if count else math.nan for total, count in zip(sums[:seen], counts[:seen], strict=True)]


FIELD_GAP = "   "
BAR_WIDTH = 40
BAR_WIDTH_AT_LEAST = 5


class LivePanel:
    """Shows a run on `console`, which must be a terminal; other prints to it appear above the region."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._progress = Progress(num_steps=1, first_step=0, clock=clock)
        self._took_seconds: float | None = None  # set when the run is over
        self._live: Live | None = None

    def open(self) -> None:
        """Show what is being done until the run has a first screen."""
        self._start(live_stage_line(self._console))

    def started(self, header: RunHeader, *, num_steps: int, first_step: int) -> None:
        self.close()
        self._progress = Progress(num_steps=num_steps, first_step=first_step, clock=self._clock)
        self._took_seconds = None
        print_header(self._console, header)
        self._console.print()
        if num_steps:  # else a dry run
            self._start(_live(self._console, self._region))

    def _start(self, live: Live) -> None:
        self._live = live
        atexit.register(self.close)  # an exception that nobody catches must not leave the cursor hidden
        live.start(refresh=True)

    def note(self, text: str, code: str = "", /) -> None:
        lead = Text(f"{code} ", "bold yellow") if code else Text()
        print_wrapped(self._console, lead, text.removeprefix(lead.plain))

    def step(self, record: StepRecord) -> None:
        self._progress.step(record)

    def evaluated(self, record: EvalRecord) -> None:
        self._progress.evaluated(record)

    def finished(self, outcome: RunOutcome) -> None:
        self._took_seconds = outcome.seconds
        self.close()
        print_outcome(self._console, outcome)

    def close(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()
            atexit.unregister(self.close)

    def _region(self) -> Group:
        is_going_on = self._took_seconds is None and self._live is not None
        doing = printable(stages.in_words()) if is_going_on else ""
        lines = region(self._progress, self._console.width, self._took_seconds, doing)
        return Group(*(_cropped(self._console, pieces) for pieces in lines))


def region(progress: Progress, width: int, took_seconds: float | None = None, doing: str = "") -> list[Line]:
    """The lines of the live region, laid out for a terminal `width` columns wide.

    `took_seconds` is None while the run goes on; `doing` is what is being done at this moment.
    """
    record, evaluation = progress.record, progress.evaluation
    total = str(progress.num_steps)
    count = f"{progress.steps_done:>{len(total)}}/{total}"
    loss = fixed(record.loss, 3) if record is not None else "0.000"
    number_width = max(len(count), len(loss))  # of what stands left of the bar and of the loss curve
    ending = _ending(progress, took_seconds)
    ending_width = max(len(ending), len("59:59 left"))  # or the bar would change its length with every digit
    figure_width = min(BAR_WIDTH, width - LABEL_WIDTH - number_width - ending_width - 2 * len(FIELD_GAP))
    has_figures = figure_width >= BAR_WIDTH_AT_LEAST

    steps: Line = [_label("step"), (count.rjust(number_width), "bold"), (FIELD_GAP, "")]
    if has_figures:
        done, still_open = bar(progress.steps_done / max(1, progress.num_steps), figure_width)
        steps += [(done, "cyan"), (still_open, "dim"), (FIELD_GAP, "")]
    lines = [[*steps, (ending, "")]]
    if record is not None:
        losses: Line = [_label("loss"), (loss.rjust(number_width), "bold"), (FIELD_GAP, "")]
        if has_figures:  # the curve grows right under the bar
            losses.append((sparkline(progress.loss_curve(figure_width)), "cyan"))
        lines.append(losses)
        accuracy = ("accuracy", fixed(record.rewards_accuracies, 3), f"(n {record.pairs})")
        lines += _flow("train", [accuracy, ("margin", fixed(record.rewards_margins, 2), "")], width)
    if evaluation is not None:
        low, high = fixed(evaluation.accuracy_low, 3), fixed(evaluation.accuracy_high, 3)
        held_out = [
            ("accuracy", fixed(evaluation.accuracy, 3), f"({low} to {high}, n {evaluation.pairs})"),
            ("chosen drift", fixed(evaluation.logps_chosen_delta, 2), "nats/token"),
            ("", "", f"at step {evaluation.step}"),
        ]
        lines += _flow("held out", held_out, width)
    if record is not None:
        speed = [("", compact(record.tokens_per_second), "tokens/s"), ("", fixed(record.memory_gb, 1), "GB")]
        lines += _flow("speed", speed, width)
    if doing:
        lines.append([_label("now"), (doing, "dim")])
    return lines


def _ending(progress: Progress, took_seconds: float | None) -> str:
    if took_seconds is not None:
        return f"in {duration(took_seconds)}"
    if progress.record is None:
        return f"starting, {duration(progress.seconds_so_far)}"
    if progress.steps_done >= progress.num_steps:
        return "finishing"
    return f"{duration(progress.seconds_left)} left"


def _label(name: str) -> tuple[str, str]:
    return name.ljust(LABEL_WIDTH), "dim"


def _flow(label: str, fields: list[Field], width: int) -> list[Line]:
    """The fields side by side after their label; what does not fit goes to the next line, under the first field."""
    room = width - LABEL_WIDTH
    parts: list[Line] = []
    for name, value, remark in fields:
        named: Line = [piece for piece in ((name, "dim"), (value, "")) if piece[0]]
        noted: Line = [(remark, "dim")] if remark else []
        together = _joined([[piece] for piece in [*named, *noted]], " ")
        parts += [together] if _width(together) <= room else [_joined([[piece] for piece in named], " "), noted]
    rows: list[list[Line]] = [[]]
    for part in parts:
        if rows[-1] and _width(_joined([*rows[-1], part], FIELD_GAP)) > room:
            rows.append([])
        rows[-1].append(part)
    return [[_label(label if number == 0 else ""), *_joined(row, FIELD_GAP)] for number, row in enumerate(rows)]


def _joined(parts: list[Line], gap: str) -> Line:
    line: Line = []
    for part in parts:
        if line:
            line.append((gap, ""))
        line += part
    return line


def _width(line: Line) -> int:
    return sum(len(text) for text, _ in line)
