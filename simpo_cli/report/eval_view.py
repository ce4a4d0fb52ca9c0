"""The result of `simpo eval` for a person: every number with its 95 % interval and its n; of several models a line
each, then every two against one another.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from rich.text import Text

from simpo_cli.evaluate.tables import (
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
from simpo_cli.formatting import thousands
from simpo_cli.report.console import Console
from simpo_cli.report.terminal import print_table, print_wrapped
from simpo_cli.table import MEASURED, Row, Table, measured_row

MOST_DETAILED = 3
"""Comparisons that are shown whole; of more only the line of the accuracy."""
_BRIEFLY = ("accuracy", "length.balanced", "margin", "logps/chosen")
_REMARKS = frozenset({"few prompts", "ties", "rule"})
"""Kinds of remarks that are also made of one model among several."""


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
        _print_comparison(console, comparison, letters, is_whole=len(comparisons) <= MOST_DETAILED)
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


def _print_comparison(
    console: Console, comparison: Mapping[str, Any], letters: Mapping[str, str], *, is_whole: bool
) -> None:
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
