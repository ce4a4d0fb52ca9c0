"""Tables and figures one line high on the terminal: a label and its numbers a line, or a line a number where that
is too wide.
"""

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import NamedTuple

from rich.cells import cell_len
from rich.text import Text

from simpo_cli.report.console import Console, encodable, printable
from simpo_cli.report.summary import print_wrapped

BLOCKS = "▁▂▃▄▅▆▇█"


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


class Row(NamedTuple):
    """One line, as text; the heading of the lines below it has no cells."""

    label: str
    cells: tuple[str, ...] = ()


class Column(NamedTuple):
    """What stands above the numbers of a column, how they look, and whether they end below one another."""

    heading: str
    style: str = ""
    ends_aligned: bool = False


def print_table(
    console: Console,
    columns: Sequence[Column],
    rows: Sequence[Row],
    *,
    gap: int = 3,
    stack: Callable[[Console, Sequence[Row]], None] | None = None,
) -> None:
    """Print rows below their headings, or stacked where the terminal is too narrow for that.

    Args:
        console: where to.
        columns: one for each cell that a row may have.
        rows: in order.
        gap: spaces between columns.
        stack: prints rows on a narrow terminal; None prints a line a cell, under the label of its row.
    """
    shown = [Row(_shown(row.label, console), tuple(_shown(cell, console) for cell in row.cells)) for row in rows]
    heading = Row("", tuple(column.heading for column in columns))
    filled = [heading, *(row for row in shown if row.cells)]  # the heading of others may run over all columns
    texts = zip_longest(*((row.label, *row.cells) for row in filled), fillvalue="")
    widths = [max(map(cell_len, column)) for column in texts]
    if sum(widths) + gap * (len(widths) - 1) <= console.width:
        _print_columns(console, columns, [heading, *shown], widths, gap)
    elif stack is not None:
        stack(console, shown)
    else:
        _print_stacked(console, columns, shown)


def print_label(console: Console, label: str, style: str = "") -> None:
    """A label on a line of its own, or on several that are indented alike."""
    text = label.lstrip()
    print_wrapped(console, Text(label[: len(label) - len(text)]), text, style=style)


def _shown(text: str, console: Console) -> str:
    return encodable(printable(text), console.encoding)


def _print_columns(
    console: Console, columns: Sequence[Column], rows: Sequence[Row], widths: Sequence[int], gap: int
) -> None:
    for number, row in enumerate(rows):
        if not row.cells:
            print_label(console, row.label)
            continue
        line = Text(row.label + " " * (widths[0] - cell_len(row.label)))
        for column, cell, width in zip(columns, row.cells, widths[1:], strict=False):  # a row may end early
            space = " " * (width - cell_len(cell))
            before, after = (space, "") if column.ends_aligned else ("", space)
            line.append(" " * gap + before)
            line.append(cell, "dim" if number == 0 else column.style)
            line.append(after)
        line.rstrip()
        console.print(line, soft_wrap=True)


def _print_stacked(console: Console, columns: Sequence[Column], rows: Sequence[Row]) -> None:
    width = max(cell_len(column.heading) for column in columns)
    for row in rows:
        print_label(console, row.label)
        for column, cell in zip(columns, row.cells, strict=False):
            if cell:
                console.print(Text.assemble(f"    {column.heading:<{width}}  ", (cell, "bold")), soft_wrap=True)
