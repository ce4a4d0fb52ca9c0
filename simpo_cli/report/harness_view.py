"""Results of lm-evaluation-harness on the screen, with their standard errors."""

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from simpo_cli.formatting import fixed
from simpo_cli.report.console import Console
from simpo_cli.report.summary import print_wrapped
from simpo_cli.report.table import Column, Row, print_table


def print_harness(console: Console, document: Mapping[str, Any]) -> None:
    """Prints the document of `simpo eval FOLDER...` for folders of results; narrow terminals get a line a number.

    Args:
        console: where to, `out` for the command.
        document: of `harness_document`.
    """
    models = document["models"]
    print_wrapped(console, Text(), "results of lm-evaluation-harness, ± standard error", style="bold")
    letters = [chr(ord("A") + number) if len(models) <= 26 else str(number + 1) for number in range(len(models))]
    for letter, model in zip(letters, models, strict=True):
        print_wrapped(console, Text(f"{letter}   ", "dim"), str(model))
    console.print()
    columns = [Column(letter) for letter in letters]
    columns += [Column(f"{letter} - {letters[0]}") for letter in letters[1:]]
    print_table(console, columns, [_row(row) for row in document["rows"]])
    console.print()
    for remark in _remarks(document):
        print_wrapped(console, Text(), remark, style="dim")


def _row(row: Mapping[str, Any]) -> Row:
    shots = {score["shots"] for score in row["scores"] if score is not None} - {None}
    told = [row["metric"]]
    if row["filter"] != "none":
        told.append(row["filter"])
    if len(shots) == 1:
        told.append(f"{shots.pop()}-shot")
    down = " (lower is better)" if row["higher_is_better"] is False else ""
    cells = (
        *("-" if score is None else _with_error(score, 4, "") for score in row["scores"]),
        *("-" if gap is None else _with_error(gap, 4, "+") for gap in row["differences"]),
    )
    return Row(f"{row['task']}, {', '.join(told)}{down}", cells)


def _with_error(number: Mapping[str, Any], digits: int, sign: str) -> str:
    value = f"{number['value']:{sign}z.{digits}f}"
    return f"{value} (no error given)" if number["stderr"] is None else f"{value} ± {fixed(number['stderr'], digits)}"


def _remarks(document: Mapping[str, Any]) -> list[str]:
    remarks = []
    gaps = [gap for row in document["rows"] for gap in row["differences"]]
    if any(gap is not None and gap["stderr"] is not None for gap in gaps):
        remarks.append(
            "The error of a difference is as of independent samples: both answered the same questions, so it is "
            "usually smaller. A difference of under two errors is not told from zero; many rows have some by chance."
        )
    if None in gaps:
        remarks.append("- where a model lacks the number, or was asked with another number of examples.")
    return remarks
