"""The two consoles of the command line, `out` for data and `err` for everything else, and what is drawn on them.

Much of what is shown was written by others: prompts, answers, paths, model names. So nothing is read as markup or emoji
codes, nothing is highlighted, and whoever prints such text passes it through `printable` first. A stream that is not
UTF-8 gets ASCII stand-ins for what it cannot show, and a reader that goes away never ends the run it was reading.
Tables, wrapped text and figures one line high fit any width.
"""

import math
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import IO, Any, TextIO, cast

import rich.console
from rich.cells import cell_len
from rich.file_proxy import FileProxy
from rich.text import Text

from simpo_cli.redaction import redacted
from simpo_cli.table import MEASURED, Bars, Table

_STAND_INS = {
    "…": "...",
    "±": "+/-",
    "≤": "<=",
    "≥": ">=",
    "→": "->",
    "⏎": "\\n",
    **dict(zip("·–—−×‘’“”", "----x''\"\"", strict=True)),
    **dict(zip("━─│▁▂▃▄▅▆▇█", "=-|__..--''", strict=True)),  # bars and sparklines, by height
}

_JOINERS = "\u200c\u200d"  # of Persian and Indic words and of emoji: invisible, and meant to be there


def printable(text: str, *, keep_newlines: bool = False) -> str:
    """Foreign text with its control characters shown, so that it cannot move the cursor or reorder what is beside it.

    Escape sequences, C0 and C1 controls, marks that reverse the writing direction, invisible tags, lone surrogates and
    line separators come out as `\\x1b` or `\\u202e`; other letters of any script stay as they are. Values that a
    recipe took from the environment come out as the recipe names them.

    With `keep_newlines` newlines stay and tabs become four spaces; else both are shown as `\\n` and `\\t`.
    """
    text = redacted(text)
    if keep_newlines:
        text = text.replace("\r\n", "\n").replace("\t", "    ")
    if text.isascii() and text.isprintable():
        return text
    harmless = _JOINERS + "\n" * keep_newlines
    return "".join(
        _escaped(character)
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in harmless
        else character
        for character in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def encodable(text: str, encoding: str) -> str:
    """`text` with stand-ins for what `encoding` lacks: `·` becomes `-`, a foreign letter its escape (`\\u4e2d`)."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        if len(text) == 1:
            return _STAND_INS.get(text) or _escaped(text)
        return "".join(encodable(character, encoding) for character in text)
    except LookupError:  # an encoding that Python does not know
        return encodable(text, "ascii")
    return text


_COMMAND = re.compile(r"^([ \t]*):(?=:)|#(?=#\[)", re.MULTILINE)


def unobeyed(text: str) -> str:
    """What GitHub's runner would take for a command of the workflow, written so that it does not.

    It obeys lines that begin with `::name::`, wherever a wrapped text happens to begin one, and `##[name]` anywhere.
    Elsewhere the text is as it was.
    """
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return text
    return _COMMAND.sub(lambda found: f"{found[1]}\\x3a" if found[0][-1] == ":" else "\\x23", text)


class _Stream:
    """A text stream that takes any text, and goes quiet when its reader has gone away, that is, at an error `leaving`.

    `find` gives the stream to write to; it is asked each time, because tests and libraries swap sys.stdout.
    """

    def __init__(self, find: Callable[[], TextIO], leaving: type[OSError]) -> None:
        self._find, self._leaving = find, leaving
        self._is_quiet = False

    @property
    def target(self) -> TextIO:
        stream = self._find()
        # a live display puts a proxy in place of sys.stderr that prints through its console, that is, through us
        return cast(TextIO, stream.rich_proxied_file) if isinstance(stream, FileProxy) else stream

    @property
    def encoding(self) -> str:
        return self.target.encoding or "utf-8"  # StringIO has none

    def write(self, text: str) -> int:
        self._unless_left(lambda: self.target.write(encodable(unobeyed(text), self.encoding)))
        return len(text)

    def flush(self) -> None:
        self._unless_left(lambda: self.target.flush())

    def isatty(self) -> bool:
        return self.target.isatty()

    def fileno(self) -> int:
        return self.target.fileno()

    def _unless_left(self, act: Callable[[], Any]) -> None:
        if self._is_quiet:
            return
        try:
            act()
        except self._leaving:
            self._is_quiet = True
            # what is still in the stream's buffer would raise once more when Python closes it
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, self.fileno())
            os.close(devnull)


class Console(rich.console.Console):
    """A rich console for text of others: no markup, no emoji codes, no highlighting, only characters the stream has."""

    def render_str(self, text: str, **settings: Any) -> Text:
        # before the layout, so that columns still line up when a stand-in is wider
        return super().render_str(encodable(text, self.encoding), **settings)


def make_console(stream: TextIO | None = None, *, stderr: bool = False, **settings: Any) -> Console:
    """A console on `stream`, or on whatever sys.stdout (sys.stderr) is at the time of writing.

    Colour follows the stream and NO_COLOR, the width the terminal and COLUMNS, unless `settings` of rich say otherwise.
    A full disk is an error for data on stdout; on stderr no failed write stops the program.
    """
    assert stream is None or not stderr, "a stream or stderr, not both"

    def find() -> TextIO:
        return stream or (sys.stderr if stderr else sys.stdout)

    is_data = not stderr and stream in (None, sys.stdout)
    return Console(
        file=cast(IO[str], _Stream(find, BrokenPipeError if is_data else OSError)),
        stderr=stderr,
        markup=False,
        emoji=False,
        highlight=False,
        **settings,
    )


out = make_console()
err = make_console(stderr=True)


# Tables, wrapped text and figures one line high

GAP = 3
QUESTION_LINES = 3
ANSWER_LINES = 6
REMARK_WIDTH = 30
"""Cells that a remark needs to stand beside its row."""
BLOCKS = "▁▂▃▄▅▆▇█"

Grid = list[list[str]]  # lines of texts as they are shown: the headings, then the rows


def sparkline(values: Sequence[float]) -> str:
    """One block a value, the lowest value lowest; a blank where a value is not finite. Equal values are all low."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return " " * len(values)
    low, spread = min(finite), max(finite) - min(finite)
    return "".join(
        BLOCKS[round((value - low) / spread * (len(BLOCKS) - 1)) if spread else 0] if math.isfinite(value) else " "
        for value in values
    )


def blocks(counts: Sequence[int]) -> str:
    """A histogram: one block a bin, the fullest bin highest; a bin with anything in it is never blank."""
    most = max(counts)
    return "".join(BLOCKS[max(0, -(-count * len(BLOCKS) // most) - 1)] if count else " " for count in counts)


def bar(share: float, width: int) -> tuple[str, str]:
    """The done and the open part of a progress bar `width` cells wide; full only when all is done."""
    done = min(width if share >= 1 else width - 1, math.floor(max(0.0, share) * width))
    return "━" * done, "─" * (width - done)


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
    lines = _wrapped(console, shown, max(8, console.width - lead.cell_len), style)
    lines = lines or [Text("(empty)" if lead else "", "dim")]
    left_out = sum(len(line) for line in lines[max_lines:]) if max_lines else 0
    for number, line in enumerate(lines[:max_lines]):
        console.print(Text.assemble(lead if number == 0 else " " * lead.cell_len, line), soft_wrap=True)
    if left_out:
        more = encodable(f"… {left_out} more characters", console.encoding)
        console.print(Text.assemble(" " * lead.cell_len, (more, "dim")), soft_wrap=True)


def print_table(
    console: Console, table: Table, *, styles: Sequence[str] = (), right: bool = False, drop: Sequence[str] = ()
) -> None:
    """Print a table with its figures and remarks; where the terminal is too narrow for columns, a line a cell.

    The cells of a column end below one another where `right` is given; columns in `drop` are left out, one after the
    other, until the table fits.
    """

    def shown(text: object) -> str:
        return encodable(printable(str(text)), console.encoding)

    grid = [[shown(text) for text in (row.label, *row.cells)] for row in table.rows]
    title, remarks = shown(table.title), ["", *(shown(row.remark) for row in table.rows)]
    if cell_len(title) > max((cell_len(line[0]) for line in grid), default=0):
        _print_label(console, title, "bold")
        title = ""
    grid.insert(0, [title, *map(shown, table.columns)])
    columns_left, gap = list(drop), GAP
    while (too_wide := _width(grid, gap) > console.width) and (gap == GAP or columns_left):
        if gap == GAP:
            gap -= 1
        else:
            at = grid[0].index(columns_left.pop(0), 1)
            grid = [[*line[:at], *line[at + 1 :]] for line in grid]
    if too_wide:
        _print_stacked(console, grid, remarks, is_measured=table.columns == MEASURED)
    else:
        _print_columns(console, grid, remarks, styles, gap, right=right)
    if table.figures:
        console.print()
        _print_bars(console, table.figures, max(cell_len(line[0]) for line in grid))
    for remark in table.remarks:
        print_wrapped(console, Text(), remark.text, style="dim")


def print_examples(console: Console, prompt: str, answers: Mapping[str, str]) -> None:
    """A prompt and what models answer to it, by their names; once where all answer the same."""
    print_wrapped(console, Text(), f'"{prompt}"', style="bold", max_lines=QUESTION_LINES)
    width = max(map(len, answers)) + 4
    if len(set(answers.values())) == 1:
        answers = {"both": next(iter(answers.values()))}
    for name, text in answers.items():
        lead = Text(f"  {name}".ljust(width), "dim")
        print_wrapped(console, lead, text, max_lines=ANSWER_LINES, keep_newlines=True)


def padded(text: str, width: int) -> str:
    """The text and blanks up to so many cells."""
    return text + " " * (width - cell_len(text))


def _wrapped(console: Console, text: str, width: int, style: str) -> list[Text]:
    lines: list[Text] = []
    for paragraph in filter(str.strip, text.split("\n")):
        first, *rest = Text(paragraph, style).wrap(console, width, overflow="fold")
        lines += [first, *(Text(line.plain.lstrip(), style) for line in rest)]
    for line in lines:
        line.rstrip()
    return lines


def _widths(grid: Grid) -> list[int]:
    """Of each column; the heading of other rows may run over all of them."""
    filled = zip_longest(grid[0], *(line for line in grid[1:] if len(line) > 1), fillvalue="")
    return [max(map(cell_len, column)) for column in filled]


def _width(grid: Grid, gap: int) -> int:
    widths = _widths(grid)
    return sum(widths) + gap * (len(widths) - 1)


def _print_columns(
    console: Console, grid: Grid, remarks: Sequence[str], styles: Sequence[str], gap: int, *, right: bool
) -> None:
    widths, start = _widths(grid), _width(grid, gap) + gap
    room = console.width - start
    beside = room >= min(REMARK_WIDTH, max(map(cell_len, remarks)))
    for number, ((label, *cells), remark) in enumerate(zip(grid, remarks, strict=True)):
        if number and not cells:
            _print_label(console, label)
            continue
        line = Text(padded(label, widths[0]), "" if number else "bold")
        for at, cell in enumerate(cells):
            space = " " * (widths[at + 1] - cell_len(cell))
            style = "dim" if number == 0 else styles[at] if at < len(styles) else ""
            line.append(" " * gap + (space if right else "")).append(cell, style).append("" if right else space)
        if beside and remark:
            first, *rest = _wrapped(console, remark, room, "dim")
            line = Text.assemble(line, " " * (start - line.cell_len), first)
            line = Text("\n" + " " * start).join([line, *rest])
        line.rstrip()
        if line:
            console.print(line, soft_wrap=True)
    below = [] if beside else [(line[0], remark) for line, remark in zip(grid, remarks, strict=True) if remark]
    is_of_the_last = len(below) == 1 and bool(remarks[-1])
    if below and not is_of_the_last:
        console.print()
    for label, remark in below:
        lead = "  " if is_of_the_last else padded(label, widths[0] + gap)
        print_wrapped(console, Text(lead, "dim"), remark, style="dim")


def _print_stacked(console: Console, grid: Grid, remarks: Sequence[str], *, is_measured: bool) -> None:
    (title, *headings), *rows = grid
    width = max(map(cell_len, headings))
    if title:
        _print_label(console, title, "bold")
    for (label, *cells), remark in zip(rows, remarks[1:], strict=True):
        _print_label(console, label, "" if cells else "dim")
        if is_measured and cells:
            interval, n = cells[1:] or ("", "")
            beside = ", ".join(part for part in (interval, n and f"n {n}") if part)
            indent = " " * (len(label) - len(label.lstrip()) + 2)
            console.print(Text.assemble(indent, (cells[0], "bold"), (beside and f" ({beside})", "dim")), soft_wrap=True)
            continue
        for heading, cell in zip(headings, cells, strict=False):
            if cell:
                console.print(Text.assemble(f"    {padded(heading, width)}  ", (cell, "bold")), soft_wrap=True)
        if remark:
            print_wrapped(console, Text("    "), remark, style="dim")


def _print_label(console: Console, label: str, style: str = "") -> None:
    """A label on a line of its own, or on several that are indented alike."""
    text = label.lstrip()
    print_wrapped(console, Text(label[: len(label) - len(text)]), text, style=style)


def _print_bars(console: Console, figures: Sequence[Bars], label_width: int) -> None:
    for bars in figures:
        sign = "+" if bars.edges[0] < 0 else ""
        low, high = (f"{edge:{sign},.0f}" for edge in (bars.edges[0], bars.edges[-1]))
        figure = (encodable(blocks(bars.counts), console.encoding), "cyan")
        line = Text.assemble(padded(bars.label, label_width), "   ", (f"{low:>7} ", "dim"), figure, (f" {high}", "dim"))
        if line.cell_len > console.width:
            line = Text.assemble(padded(bars.label, label_width), " ", figure)
        console.print(line, soft_wrap=True)
    print_wrapped(console, Text(), "outermost bins also hold what lies beyond", style="dim")
