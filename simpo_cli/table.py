"""Tables as data: screen, page, model card and comparison show the same numbers, and each draws them in its own way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simpo_cli.formatting import Cell, Measured, thousands

MEASURED = ("value", "95 % interval", "n")
"""The columns of a table with one measured number a row."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line; whoever draws it escapes text of others.

    Attributes:
        label: begins with spaces where the row belongs to the one above.
        cells: one a column, perhaps fewer; the heading of the rows below has none.
        remark: what to know beside the numbers.
    """

    label: str
    cells: tuple[Cell, ...] = ()
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Remark:
    """A sentence below a table; `kind` says what it is about, so that nobody has to read it to choose it."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Bars:
    """A histogram.

    Attributes:
        counts: (bins,) how many values lie in each bin.
        edges: (bins + 1,) the outermost bins also hold what lies beyond.
    """

    label: str
    counts: Sequence[int]
    edges: Sequence[float]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under their headings, with what belongs to them.

    Attributes:
        columns: headings of the cells.
        title: stands above the labels.
    """

    columns: tuple[str, ...]
    rows: Sequence[Row]
    title: str = ""
    remarks: Sequence[Remark] = ()
    figures: Sequence[Bars] = ()


def measured_row(label: str, show: Callable[[Measured], Cell], measured: Measured | None, n: int | None = None) -> Row:
    """A row under `MEASURED`: None was measured on too few of the `n`, JSON's null is a number that is not finite."""
    if measured is None:
        return Row(label, (Cell("too few"), Cell(""), Cell("" if n is None else thousands(n))))
    cell = Cell("nan") if measured["value"] is None else show(measured)
    return Row(label, (Cell(cell.text), Cell(cell.below), Cell(thousands(measured["n"]))))
