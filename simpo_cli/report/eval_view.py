"""The results of `simpo eval` for a person, every number with its 95 % interval and its n.

Of held-out pairs: one model, or a line each of several and then every two against one another. Of answers of two
models: what was counted, what people and judges preferred. Of lm-evaluation-harness: numbers with standard errors.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.text import Text

from simpo_cli.evaluate.tables import (
    CHECKED,
    DIFFERENCES,
    MEASURES,
    difference_table,
    eval_table,
    failure_in_words,
    find,
    gain_in_words,
    seeds_table,
    swapped_in_words,
)
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
from simpo_cli.report.console import (
    ANSWER_LINES,
    QUESTION_LINES,
    Console,
    encodable,
    make_console,
    padded,
    print_examples,
    print_table,
    print_wrapped,
)
from simpo_cli.table import MEASURED, Remark, Row, Table, measured_row

MOST_DETAILED = 3
"""Comparisons that are shown whole; of more only the line of the accuracy."""
_BRIEFLY = ("accuracy", "length.balanced", "margin", "logps/chosen")
_REMARKS = frozenset({"few prompts", "ties", "rule"})
"""Kinds of remarks that are also made of one model among several."""
_MODES = {"greedy": "greedy", "sampled": "sampled at temperature {temperature:g}"}
_SHARES = (("repeated_4_grams", "repeated-4"), ("no_end", "no end token"), ("empty", "empty"), ("refusals", "refusals"))
_WIDE = 80
_GAP = "  "


def print_eval(console: Console, result: Mapping[str, Any]) -> None:
    """Print the document that `simpo eval --json` prints (docs/evaluation.md), of one model or of several."""
    if "evaluations" in result:
        _print_together(console, result)
        return
    print_wrapped(console, Text(), result["model"], style="bold")
    print_wrapped(console, Text("on ", "dim"), str(result["data"]))
    if result["not_compared"]:
        print_wrapped(console, Text("not compared  ", "bold"), failure_in_words(result["not_compared"]))
    if result["difference"] is not None:
        console.print()
        print_wrapped(console, Text(), gain_in_words({**result, "before": result["baseline"], "after": result}))
    console.print()
    table = eval_table(result)
    _print(console, replace(table, remarks=()))
    console.print()
    for remark in table.remarks:
        print_wrapped(console, Text(), remark.text, style="dim")


def _print(console: Console, table: Table) -> None:
    print_table(console, table, styles=("bold", "", "dim"), right=True)


def _print_together(console: Console, result: Mapping[str, Any]) -> None:
    evaluations, comparisons = result["evaluations"], result["comparisons"]
    letters = {one["model"]: chr(ord("A") + n) if n < 26 else f"M{n + 1}" for n, one in enumerate(evaluations)}
    for model, letter in letters.items():
        print_wrapped(console, Text(f"{letter}  ", "bold"), model)
    console.print()
    _print(console, Table(MEASURED, [row for one in evaluations for row in _model_rows(one, letters[one["model"]])]))
    for one in evaluations:
        letter = letters[one["model"]]
        if one["not_compared"]:
            lead = Text(f"{letter}  not compared  ", "bold")
            print_wrapped(console, lead, failure_in_words(one["not_compared"]))
        for remark in eval_table(one).remarks:
            if remark.kind in _REMARKS:
                print_wrapped(console, Text(f"{letter}  ", "dim"), remark.text, style="dim")
    for comparison in comparisons:
        console.print()
        _print_comparison(console, comparison, letters, len(comparisons) <= MOST_DETAILED)
    for group in result["seeds"]:
        console.print()
        models = zip(group["models"], group["seeds"], strict=True)
        listed = ", ".join(f"{letters[model]} (seed {seed})" for model, seed in models)
        print_wrapped(console, Text("one recipe, several seeds  ", "bold"), listed)
        _print(console, seeds_table(group))
    for failure in result["failed"]:
        console.print()
        print_wrapped(console, Text("not scored  ", "bold"), failure_in_words(failure))


def _model_rows(one: Mapping[str, Any], letter: str) -> Iterator[Row]:
    yield Row(f"{letter}  on {one['data']}")
    for key in _BRIEFLY:
        label, show = MEASURES[key]
        yield measured_row(f"   {label}", show, find(one, key))
    if one["difference"] is not None:
        show = DIFFERENCES["accuracy"][1]
        yield measured_row(f"   points over {one['baseline']['model']}", show, one["difference"]["accuracy"])


def _print_comparison(console: Console, comparison: Mapping[str, Any], letters: dict[str, str], is_whole: bool) -> None:
    first, second = (letters[model] for model in comparison["models"])
    shared = f", on the {thousands(comparison['pairs'])} pairs that both have"
    print_wrapped(console, Text(f"{second} less {first}", "bold"), shared)
    for changed in (comparison["recipes"] or []) if is_whole else []:
        values = " -> ".join("null" if value is None else str(value) for value in changed["values"])
        print_wrapped(console, Text(f"  {changed['key']}  ", "dim"), values)
    if comparison["recipes"] == []:
        print_wrapped(console, Text("  "), "their recipes are equal", style="dim")
    if swapped := swapped_in_words(comparison["swapped"]):
        print_wrapped(console, Text("  "), swapped)
    if comparison["difference"] is None:
        print_wrapped(console, Text("  "), "There is no such pair, so they cannot be compared.")
    else:
        _print(console, difference_table(comparison["difference"], DIFFERENCES if is_whole else ("accuracy",)))


def how_answered(manifest: Mapping[str, Any]) -> str:
    """How many prompts of what were answered, and by what."""
    prompts, decoding = manifest["prompts"], manifest["decoding"]
    return (
        f"{thousands(prompts['count'])} prompts of {prompts['from']}, at most {thousands(decoding['max_new_tokens'])} "
        f"new tokens, by {manifest['engine']} {manifest['engine_version']}"
    )


def measure_tables(document: Mapping[str, Any]) -> Iterator[Table]:
    """What was counted in both models' answers, a table for greedy and one for sampled answers."""
    for mode, measures in document["measures"].items():
        title = _MODES[mode].format_map(document["manifest"]["decoding"])
        yield Table(("base", "trained", "difference"), _measure_rows(measures), title=title)


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
    prompts, remarks = document["manifest"]["prompts"], []
    if left_out := ", ".join(f"{thousands(count)} {reason}" for reason, count in prompts["left_out"].items()):
        remarks.append(f"Left out: {left_out}.")
    if same := document["measures"]["greedy"]["same_answers"]:
        remarks.append(f"Both models gave the same greedy answer to {thousands(same)} prompts.")
    if (checked := document["measures"]["greedy"]["checked"]) is not None:
        known = f"{thousands(checked['prompts'])} of the {thousands(prompts['count'])} prompts"
        remarks.append(f"Wholly right answers and right parts, to {known}: as {checked['rule']} knows them.")
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
    for key, (label, _) in CHECKED.items() if measures["checked"] is not None else ():
        one = measures["checked"][key]
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
    half, columns = (console.width - 2 * len(_GAP)) // 2, []
    for name, answer in answers.items():
        stream = io.StringIO()
        column, text = make_console(stream, width=half), encodable(answer, console.encoding)
        print_wrapped(column, Text(), text, max_lines=ANSWER_LINES, keep_newlines=True)
        columns.append([name, *stream.getvalue().splitlines()])
    for left, right in zip_longest(*columns, fillvalue=""):
        console.print(Text(f"{_GAP}{padded(left, half)}{_GAP}{right}".rstrip()), soft_wrap=True)


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
