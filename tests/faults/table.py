"""Tables of counts, as Markdown that can be read as it is."""

from collections.abc import Sequence


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is left-aligned and whose others are right-aligned.

    Args:
        names: of the columns.
        rows: as many cells each.
    """
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    ruler = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in (names, ruler, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
