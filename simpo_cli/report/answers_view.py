"""Answers of two models: what was counted, what people and judges preferred, as tables and on the screen; and results
of lm-evaluation-harness with their standard errors.
"""

import io
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.text import Text

from simpo_cli.formatting import (
    FEW_PROMPTS,
    Cell,
    Measured,
    few_prompts,
    fixed,
    number_cell,
    percent,
    points_cell,
    share_cell,
    thousands,
)
from simpo_cli.report.console import Console, encodable, make_console
from simpo_cli.report.terminal import (
    ANSWER_LINES,
    QUESTION_LINES,
    padded,
    print_examples,
    print_table,
    print_wrapped,
)
from simpo_cli.table import Remark, Row, Table

_MODES = {"greedy": "greedy", "sampled": "sampled at temperature {temperature:g}"}
_SHARES = (("repeated_4_grams", "repeated-4"), ("no_end", "no end token"), ("empty", "empty"), ("refusals", "refusals"))
_WIDE = 80
_GAP = "  "


def how_answered(manifest: Mapping[str, Any]) -> str:
    """How many prompts of what were answered, and by what."""
    prompts, decoding = manifest["prompts"], manifest["decoding"]
    return (
        f"{thousands(prompts['count'])} prompts of {prompts['from']}, at most {thousands(decoding['max_new_tokens'])} "
        f"new tokens, by {manifest['engine']} {manifest['engine_version']}"
    )


def measure_tables(document: Mapping[str, Any]) -> list[Table]:
    """What was counted in both models' answers, a table for greedy and one for sampled answers."""
    decoding = document["manifest"]["decoding"]
    return [
        Table(("base", "trained", "difference"), _measure_rows(measures), title=_MODES[mode].format_map(decoding))
        for mode, measures in document["measures"].items()
    ]


def preference_tables(document: Mapping[str, Any]) -> list[Table]:
    """How often each judge, and people, preferred the trained model."""
    tables = [_judge_table(judge) for judge in document["judges"]]
    if people := document["people"]:
        counts = ", ".join(f"{thousands(people[name])} {name}" for name in ("wins", "ties", "losses", "open"))
        remark = Remark("verdicts", f"{counts}; a tie counts one half.")
        row = Row("  trained wins", (_with_n(people["win_rate"]),))
        tables.append(Table(("",), [row], title="judged by people", remarks=[remark]))
    return tables


def answer_remarks(document: Mapping[str, Any]) -> list[str]:
    """What to know beside the numbers."""
    prompts = document["manifest"]["prompts"]
    remarks = []
    if left_out := ", ".join(f"{thousands(count)} {reason}" for reason, count in prompts["left_out"].items()):
        remarks.append(f"Left out: {left_out}.")
    if same := document["measures"]["greedy"]["same_answers"]:
        remarks.append(f"Both models gave the same greedy answer to {thousands(same)} prompts.")
    if few := few_prompts({"prompts": prompts["count"]}):
        remarks.append(f"{few} Ask at least {FEW_PROMPTS}.")
    return remarks


def print_answers(console: Console, document: Mapping[str, Any]) -> None:
    """Print the document of `simpo eval --generate`; narrow terminals get a line for each model."""
    models, sides = document["manifest"]["models"], ("base", "trained")
    print_wrapped(console, Text(), f"answers of {models['trained']['name']} and {models['base']['name']}", style="bold")
    print_wrapped(console, Text(), how_answered(document["manifest"]), style="dim")
    for table in measure_tables(document):
        console.print()
        print_table(console, table)
    names = ", ".join(f"{side} is {models[side]['path']}" for side in sides)
    print_wrapped(console, Text(), f"{names}; differences of shares are in points.", style="dim")
    for example in document["examples"]:
        console.print()
        _print_example(console, example["prompt"], {side: example[side] for side in sides})
    for table in preference_tables(document):
        console.print()
        print_table(console, table, styles=("bold",))
    console.print()
    if document["people"] is None:
        to_do = f"{document['sheet']}   blind; fill in the column verdict, then"
        print_wrapped(console, Text("to judge   ", "dim"), to_do)
        print_wrapped(console, Text("           "), f"simpo eval {document['folder']}")
    for remark in answer_remarks(document):
        print_wrapped(console, Text(), remark, style="dim")
    folder = Path(document["folder"])
    print_wrapped(console, Text(), f"Answers, and files for AlpacaEval and Arena-Hard: {folder}", style="dim")
    if (folder.parent / "run.json").is_file():
        print_wrapped(console, Text(), f"To have them in the run's report: simpo report {folder.parent}", style="dim")


def print_harness(console: Console, document: Mapping[str, Any]) -> None:
    """Print the document of `simpo eval FOLDER...` for folders of results of lm-evaluation-harness."""
    models = document["models"]
    print_wrapped(console, Text(), "results of lm-evaluation-harness, ± standard error", style="bold")
    letters = [chr(ord("A") + number) if len(models) <= 26 else str(number + 1) for number in range(len(models))]
    for letter, model in zip(letters, models, strict=True):
        print_wrapped(console, Text(f"{letter}   ", "dim"), str(model))
    console.print()
    columns = (*letters, *(f"{letter} - {letters[0]}" for letter in letters[1:]))
    print_table(console, Table(columns, [_harness_row(row) for row in document["rows"]]))
    gaps = [gap for row in document["rows"] for gap in row["differences"]]
    console.print()
    if any(gap is not None and gap["stderr"] is not None for gap in gaps):
        remark = (
            "The error of a difference is as of independent samples: both answered the same questions, so it is "
            "usually smaller. A difference of under two errors is not told from zero; many rows have some by chance."
        )
        print_wrapped(console, Text(), remark, style="dim")
    if None in gaps:
        remark = "- where a model lacks the number, or was asked with another number of examples."
        print_wrapped(console, Text(), remark, style="dim")


def _measure_rows(measures: Mapping[str, Any]) -> list[Row]:
    tokens = measures["tokens"]
    ratio = None if tokens["ratio"] is None else number_cell(tokens["ratio"], 2)
    lengths = (number_cell(tokens[side], 1) for side in ("base", "trained"))
    rows = [Row("  tokens", (*lengths, Cell("") if ratio is None else Cell(f"× {ratio.text}", ratio.below)))]
    for key, label in _SHARES:
        one = measures[key]
        cells = (share_cell(one["base"]), share_cell(one["trained"]), points_cell(one["difference"]))
        rows.append(Row(f"  {label}", cells))
    for size in (1, 2):
        both = (measures[f"distinct_{size}"][side] for side in ("base", "trained"))
        rows.append(Row(f"  distinct-{size}", tuple(Cell("" if one is None else fixed(one, 3)) for one in both)))
    return rows


def _judge_table(judge: Mapping[str, Any]) -> Table:
    """The shares, how many verdicts there are, which replies hold none, and whether the judge likes a place."""
    rows = [
        Row("  trained wins", (_with_n(judge["win_rate"]),)),
        Row("  at equal lengths", (_with_n(judge["length_controlled"]),)),
        Row("  same verdict in both orders", (_with_n(judge["position_consistency"]),)),
    ]
    prompts = judge["prompts"]
    counts = f"{thousands(prompts['judged'])} of {thousands(prompts['all'])} prompts have a verdict in both orders"
    if prompts["equal_answers"]:
        counts += f", {thousands(prompts['equal_answers'])} of them because both answers are the same"
    lost = {name: count for name, count in judge["replies"].items() if name != "verdict" and count}
    if lost:
        listed = ", ".join(f"{thousands(count)} {name.replace('_', ' ')}" for name, count in lost.items())
        counts += f"; replies without one: {listed}"
    remarks = [Remark("verdicts", f"{counts}.")]
    if (first := judge["first_shown_wins"]) is not None:
        remarks.append(Remark("position", f"The answer shown first won {percent(first)} of the decided verdicts."))
    return Table(("",), rows, title=f"judged by {judge['judge']} at {judge['url']}", remarks=remarks)


def _with_n(measured: Measured | None) -> Cell:
    if measured is None:
        return Cell("too few to say")
    cell = share_cell(measured)
    return Cell(cell.text, f"{cell.below}, n {thousands(measured['n'])}")


def _print_example(console: Console, prompt: str, answers: Mapping[str, str]) -> None:
    """A prompt and what both models say to it, side by side where there is room and they differ."""
    if console.width < _WIDE or len(set(answers.values())) == 1:
        print_examples(console, prompt, answers)
        return
    print_wrapped(console, Text(), f'"{prompt}"', style="bold", max_lines=QUESTION_LINES)
    half = (console.width - 2 * len(_GAP)) // 2
    columns = [_column(name, encodable(text, console.encoding), half) for name, text in answers.items()]
    for left, right in zip_longest(*columns, fillvalue=""):
        console.print(Text(f"{_GAP}{padded(left, half)}{_GAP}{right}".rstrip()), soft_wrap=True)


def _column(name: str, answer: str, width: int) -> Sequence[str]:
    """A model's answer as lines of so many cells, under its name."""
    stream = io.StringIO()
    console = make_console(stream, width=width)
    print_wrapped(console, Text(), answer, max_lines=ANSWER_LINES, keep_newlines=True)
    return [name, *stream.getvalue().splitlines()]


def _harness_row(row: Mapping[str, Any]) -> Row:
    shots = {score["shots"] for score in row["scores"] if score is not None} - {None}
    parts = [row["task"], row["metric"]]
    if row["filter"] != "none":
        parts.append(row["filter"])
    if len(shots) == 1:
        parts.append(f"{shots.pop()}-shot")
    down = " (lower is better)" if row["higher_is_better"] is False else ""
    cells = [_with_error(score, "") for score in row["scores"]] + [_with_error(gap, "+") for gap in row["differences"]]
    return Row(f"{', '.join(parts)}{down}", tuple(cells))


def _with_error(number: Mapping[str, Any] | None, sign: str) -> Cell:
    if number is None:
        return Cell("-")
    value = f"{number['value']:{sign}z.4f}"
    if number["stderr"] is None:
        return Cell(value, "no error given")
    return Cell(f"{value} ± {fixed(number['stderr'], 4)}")
