"""Answers of two models on the screen: what was counted, what people said, what judges said; and results of
lm-evaluation-harness with their standard errors.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from simpo_cli.formatting import (
    FEW_PROMPTS,
    Cell,
    Measured,
    fixed,
    number_cell,
    percent,
    points_cell,
    share_cell,
    thousands,
)
from simpo_cli.report.console import Console, encodable, make_console
from simpo_cli.report.summary import ANSWER_LINES, QUESTION_LINES, print_wrapped
from simpo_cli.report.terminal import Column, Row, print_table

_SHARES = (("repeated_4_grams", "repeated-4"), ("no_end", "no end token"), ("empty", "empty"), ("refusals", "refusals"))
_MODES = {"greedy": "greedy", "sampled": "sampled at temperature {temperature:g}"}


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One measure of both models' answers and how they differ."""

    label: str
    base: Cell
    trained: Cell
    difference: Cell


def measure_rows(measures: Mapping[str, Any]) -> list[AnswerRow]:
    """The lines of one mode's table."""
    tokens = measures["tokens"]
    ratio = Cell("") if tokens["ratio"] is None else number_cell(tokens["ratio"], 2)
    rows = [
        AnswerRow(
            "tokens",
            number_cell(tokens["base"], 1),
            number_cell(tokens["trained"], 1),
            Cell(f"× {ratio.text}", ratio.below) if ratio.text else ratio,
        )
    ]
    for key, label in _SHARES:
        one = measures[key]
        rows.append(
            AnswerRow(label, share_cell(one["base"]), share_cell(one["trained"]), points_cell(one["difference"]))
        )
    for size in (1, 2):
        distinct = measures[f"distinct_{size}"]
        rows.append(AnswerRow(f"distinct-{size}", _plain(distinct["base"]), _plain(distinct["trained"]), Cell("")))
    return rows


def _plain(value: float | None) -> Cell:
    return Cell("" if value is None else fixed(value, 3))


def mode_in_words(mode: str, decoding: Mapping[str, Any]) -> str:
    """How the answers of one mode are drawn."""
    return _MODES[mode].format_map(decoding)


def how_answered(manifest: Mapping[str, Any]) -> str:
    """How many prompts of what were answered, and by what."""
    prompts, decoding = manifest["prompts"], manifest["decoding"]
    return (
        f"{thousands(prompts['count'])} prompts of {prompts['from']}, at most {thousands(decoding['max_new_tokens'])} "
        f"new tokens, by {manifest['engine']} {manifest['engine_version']}"
    )


def judge_rows(judge: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    """How often one judge preferred the trained model, each share with its n."""
    return [
        ("trained wins", _with_n(judge["win_rate"])),
        ("at equal lengths", _with_n(judge["length_controlled"])),
        ("same verdict in both orders", _with_n(judge["position_consistency"])),
    ]


def _with_n(measured: Measured | None) -> Cell:
    if measured is None:
        return Cell("too few to say")
    cell = share_cell(measured)
    return Cell(cell.text, f"{cell.below}, n {thousands(measured['n'])}")


def judge_remarks(judge: Mapping[str, Any]) -> list[str]:
    """How many verdicts there are, which replies hold none, and whether the judge likes a place."""
    prompts, replies = judge["prompts"], judge["replies"]
    lost = ", ".join(
        f"{thousands(count)} {name.replace('_', ' ')}" for name, count in replies.items() if name != "verdict" and count
    )
    said = f"{thousands(prompts['judged'])} of {thousands(prompts['all'])} prompts have a verdict in both orders"
    if prompts["equal_answers"]:
        said += f", {thousands(prompts['equal_answers'])} of them because both answers are the same"
    if lost:
        said += f"; replies without one: {lost}"
    remarks = [f"{said}."]
    if judge["first_shown_wins"] is not None:
        first = percent(judge["first_shown_wins"])
        remarks.append(f"The answer shown first won {first} of the decided verdicts.")
    return remarks


def people_row(people: Mapping[str, Any]) -> tuple[str, Cell]:
    """How often people preferred the trained model."""
    return "trained wins", _with_n(people["win_rate"])


def people_remark(people: Mapping[str, Any]) -> str:
    """What people have filled in."""
    said = ", ".join(f"{thousands(people[name])} {name}" for name in ("wins", "ties", "losses", "open"))
    return f"{said}; a tie counts one half."


def answer_remarks(document: Mapping[str, Any]) -> list[str]:
    """What to know beside the numbers."""
    prompts = document["manifest"]["prompts"]
    remarks = []
    left_out = ", ".join(f"{thousands(count)} {reason}" for reason, count in prompts["left_out"].items())
    if left_out:
        remarks.append(f"Left out: {left_out}.")
    same = document["measures"]["greedy"]["same_answers"]
    if same:
        remarks.append(f"Both models gave the same greedy answer to {thousands(same)} prompts.")
    if prompts["count"] < FEW_PROMPTS:
        remarks.append(f"Only {prompts['count']} prompts: too few to conclude much. Ask at least {FEW_PROMPTS}.")
    return remarks


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
