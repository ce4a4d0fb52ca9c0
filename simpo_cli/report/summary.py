"""What a person reads before the first step and after the last, on a terminal and off it."""

import os

from rich.cells import cell_len
from rich.text import Text

from simpo_cli.report.console import Console, encodable, printable
from simpo_cli.run.events import RunHeader, RunOutcome

LABEL_WIDTH = 9
GAP = 3
QUESTION_LINES = 3
ANSWER_LINES = 6


def print_header(console: Console, header: RunHeader) -> None:
    """The title, then a label and a text a line: loss, model, data, plan."""
    print_wrapped(console, Text(), header.title, style="bold")
    width = max([LABEL_WIDTH, *(cell_len(line.label) + 1 for line in header.lines)])
    for line in header.lines:
        print_wrapped(console, Text(printable(line.label).ljust(width), "dim"), line.text)


def print_outcome(console: Console, outcome: RunOutcome) -> None:
    """The table of before and after, the answers before and after, where things are and what to type next."""
    console.print()
    _print_table(console, outcome.table)
    for question, before, after in outcome.answers:
        console.print()
        print_wrapped(console, Text(), f'"{question}"', style="bold", max_lines=QUESTION_LINES)
        if before == after:
            print_wrapped(console, Text("  both    ", "dim"), after, max_lines=ANSWER_LINES, keep_newlines=True)
            continue
        print_wrapped(console, Text("  before  ", "dim"), before, max_lines=ANSWER_LINES, keep_newlines=True)
        print_wrapped(console, Text("  after   ", "dim"), after, max_lines=ANSWER_LINES, keep_newlines=True)
    if same := sum(before == after for _, before, after in outcome.answers):
        console.print()
        count = f"{same} of {len(outcome.answers)} answers are" if same > 1 else "1 answer is"
        print_wrapped(console, Text(), f"{count} the same before and after.", style="dim")
    console.print()
    _print_whole(console, Text("model   ", "dim"), outcome.model_dir)
    report = os.path.join(outcome.run_dir, "report.html")
    if os.path.isfile(report):
        _print_whole(console, Text("report  ", "dim"), report)
    _print_next(console, outcome.next_commands)


def print_wrapped(
    console: Console,
    lead: Text,
    text: str,
    *,
    style: str = "",
    max_lines: int | None = None,
    keep_newlines: bool = False,
) -> None:
    """Foreign text after a lead, wrapped under its own first letter; past `max_lines` it says how much is left out."""
    shown = encodable(printable(text, keep_newlines=keep_newlines).strip(), console.encoding)
    width = max(8, console.width - lead.cell_len)
    lines: list[Text] = []
    for paragraph in filter(str.strip, shown.split("\n")):
        first, *rest = Text(paragraph, style).wrap(console, width, overflow="fold")
        lines += [first, *(Text(line.plain.lstrip(), style) for line in rest)]
    lines = lines or [Text("(empty)" if lead else "", "dim")]
    left_out = sum(len(line) for line in lines[max_lines:]) if max_lines else 0
    for number, line in enumerate(lines[:max_lines]):
        line.rstrip()
        console.print(Text.assemble(lead if number == 0 else " " * lead.cell_len, line), soft_wrap=True)
    if left_out:
        more = encodable(f"… {left_out} more characters", console.encoding)
        console.print(Text.assemble(" " * lead.cell_len, (more, "dim")), soft_wrap=True)


def _print_table(console: Console, rows: tuple[tuple[str, str, str, str], ...]) -> None:
    if not rows:
        return
    cells = [tuple(encodable(printable(cell), console.encoding) for cell in row) for row in rows]
    label_width, before_width, after_width = (
        max(cell_len(heading), *(cell_len(row[column]) for row in cells)) + GAP
        for column, heading in enumerate(("", "before", "after"))
    )
    numbers_width = label_width + before_width + after_width
    if numbers_width - GAP > console.width:  # too narrow for columns: one thing a line
        for label, before, after, remark in cells:
            print_wrapped(console, Text(), label)
            if before:
                print_wrapped(console, Text("  before  ", "dim"), before)
            if after:
                print_wrapped(console, Text("  after   ", "dim"), after, style="bold")
            if remark:
                print_wrapped(console, Text("  "), remark, style="dim")
        return
    beside = numbers_width + max(cell_len(row[3]) for row in cells) <= console.width
    heading = " " * label_width + _padded("before", before_width) + "after"
    console.print(Text(heading, "dim"), soft_wrap=True)
    for label, before, after, remark in cells:
        line = Text.assemble(
            _padded(label, label_width),
            _padded(before, before_width),
            (_padded(after, after_width if beside and remark else 0), "bold"),
            (remark if beside else "", "dim"),
        )
        line.rstrip()
        console.print(line, soft_wrap=True)
    remarked = [] if beside else [(label, remark) for label, _, _, remark in cells if remark]
    if len(remarked) == 1:
        print_wrapped(console, Text("  "), remarked[0][1], style="dim")
    elif remarked:
        console.print()
        for label, remark in remarked:
            print_wrapped(console, Text(_padded(label, label_width), "dim"), remark, style="dim")


def _print_next(console: Console, commands: tuple[tuple[str, str], ...]) -> None:
    lead = Text("next    ", "dim")
    shown = [(printable(command), printable(purpose)) for command, purpose in commands]
    width = max((cell_len(command) for command, _ in shown), default=0) + GAP
    fits = all(lead.cell_len + width + cell_len(purpose) <= console.width for _, purpose in shown)
    for number, (command, purpose) in enumerate(shown):
        label = lead if number == 0 else Text(" " * lead.cell_len)
        if fits:
            _print_whole(console, label, _padded(command, width), purpose)
        else:
            _print_whole(console, label, command)
            print_wrapped(console, Text(" " * (lead.cell_len + 2)), purpose, style="dim")


def _print_whole(console: Console, lead: Text, text: str, remark: str = "") -> None:
    """A path or command on one line, however narrow the terminal, so that it can be copied."""
    line = Text.assemble(lead, encodable(printable(text), console.encoding), (remark, "dim"))
    line.rstrip()
    console.print(line, soft_wrap=True)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))
