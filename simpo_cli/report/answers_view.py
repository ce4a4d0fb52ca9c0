"""Answers of two models on the screen: what was counted, what people said, what judges said."""

import io
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from simpo_cli.report.answer_rows import (
    answer_remarks,
    how_answered,
    judge_remarks,
    judge_rows,
    measure_rows,
    mode_in_words,
    people_remark,
    people_row,
)
from simpo_cli.report.console import Console, encodable, make_console
from simpo_cli.report.summary import ANSWER_LINES, QUESTION_LINES, print_wrapped
from simpo_cli.report.table import Column, Row, print_table

_COLUMNS = (Column("base"), Column("trained"), Column("difference"))
_WIDE = 80
_GAP = 2  # intervals stand beside their numbers, which takes room


def print_answers(console: Console, document: Mapping[str, Any]) -> None:
    """Prints the document of `simpo eval --generate`; narrow terminals get a line for each model.

    Args:
        console: where to, `out` for the command.
        document: of `answers_document`.
    """
    manifest = document["manifest"]
    models = manifest["models"]
    print_wrapped(console, Text(), f"answers of {models['trained']['name']} and {models['base']['name']}", style="bold")
    print_wrapped(console, Text(), how_answered(manifest), style="dim")
    console.print()
    rows = []
    for mode, measures in document["measures"].items():
        rows.append(Row(mode_in_words(mode, manifest["decoding"])))
        for one in measure_rows(measures):
            rows.append(Row(f"  {one.label}", (str(one.base), str(one.trained), str(one.difference))))
    print_table(console, _COLUMNS, rows, gap=_GAP)
    names = ", ".join(f"{side} is {models[side]['path']}" for side in ("base", "trained"))
    print_wrapped(console, Text(), f"{names}; differences of shares are in points.", style="dim")
    for example in document["examples"]:
        _print_example(console, example)
    for judge in document["judges"]:
        console.print()
        _print_judge(console, judge)
    console.print()
    _print_people(console, document)
    for remark in answer_remarks(document):
        print_wrapped(console, Text(), remark, style="dim")
    folder = Path(document["folder"])
    print_wrapped(console, Text(), f"Answers, and files for AlpacaEval and Arena-Hard: {folder}", style="dim")
    if (folder.parent / "run.json").is_file():
        print_wrapped(console, Text(), f"To have them in the run's report: simpo report {folder.parent}", style="dim")


def _print_example(console: Console, example: Mapping[str, str]) -> None:
    """A prompt and what both models say to it, side by side where there is room."""
    prompt, base, trained = (example[name] for name in ("prompt", "base", "trained"))
    console.print()
    print_wrapped(console, Text(), f'"{prompt}"', style="bold", max_lines=QUESTION_LINES)
    if base == trained:
        print_wrapped(console, Text("  both     ", "dim"), base, max_lines=ANSWER_LINES, keep_newlines=True)
    elif console.width < _WIDE:
        print_wrapped(console, Text("  base     ", "dim"), base, max_lines=ANSWER_LINES, keep_newlines=True)
        print_wrapped(console, Text("  trained  ", "dim"), trained, max_lines=ANSWER_LINES, keep_newlines=True)
    else:
        columns = [_column(console, *named) for named in (("base", base), ("trained", trained))]
        for left, right in zip_longest(*columns, fillvalue=""):
            room = " " * (_half(console) - cell_len(left) + _GAP)
            console.print(Text(f"  {left}{room}{right}".rstrip()), soft_wrap=True)


def _half(console: Console) -> int:
    return (console.width - 2 - _GAP) // 2


def _column(console: Console, name: str, answer: str) -> list[str]:
    """A model's answer as lines of half the screen, under its name."""
    stream = io.StringIO()
    half = make_console(stream, width=_half(console))
    print_wrapped(half, Text(), encodable(answer, console.encoding), max_lines=ANSWER_LINES, keep_newlines=True)
    return [name, *stream.getvalue().splitlines()]


def _print_judge(console: Console, judge: Mapping[str, Any]) -> None:
    print_wrapped(console, Text(), f"judged by {judge['judge']} at {judge['url']}", style="bold")
    rows = judge_rows(judge)
    width = max(len(label) for label, _ in rows)
    for label, cell in rows:
        console.print(Text.assemble(f"  {label:<{width}}   ", (str(cell), "bold")), soft_wrap=True)
    for remark in judge_remarks(judge):
        print_wrapped(console, Text("  "), remark, style="dim")


def _print_people(console: Console, document: Mapping[str, Any]) -> None:
    people = document["people"]
    if people is None:
        print_wrapped(
            console, Text("to judge   ", "dim"), f"{document['sheet']}   blind; fill in the column verdict, then"
        )
        print_wrapped(console, Text("           "), f"simpo eval {document['folder']}")
        return
    label, cell = people_row(people)
    console.print(Text("judged by people", "bold"), soft_wrap=True)
    console.print(Text.assemble(f"  {label}   ", (str(cell), "bold")), soft_wrap=True)
    print_wrapped(console, Text("  "), people_remark(people), style="dim")
