"""Several models of one `simpo eval` for a person: a line each, then every two against one another."""

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from simpo_cli.evaluate.matching import swapped_in_words
from simpo_cli.formatting import thousands
from simpo_cli.report.console import Console, printable
from simpo_cli.report.eval_remarks import difference_remarks, failure_in_words, remarks
from simpo_cli.report.eval_view import difference_rows, number_row, points_row, print_rows, share_row
from simpo_cli.report.summary import print_wrapped
from simpo_cli.report.table import Row

MOST_DETAILED = 3
"""Comparisons that are shown whole; of more only the line of the accuracy."""


def print_together(console: Console, result: Mapping[str, Any]) -> None:
    """Prints the document of several models."""
    letters = _letters(result)
    for model, letter in letters.items():
        print_wrapped(console, Text(f"{letter}  ", "bold"), model)
    console.print()
    print_rows(console, [row for one in result["evaluations"] for row in _model_rows(one, letters[one["model"]])])
    for one in result["evaluations"]:
        if one.get("not_compared"):
            lead = Text(f"{letters[one['model']]}  not compared  ", "bold")
            print_wrapped(console, lead, failure_in_words(one["not_compared"]))
        notable = [said for said in remarks(one) if said.startswith(("Only ", "Equal ", "Picking ", "A classifier "))]
        for said in notable:
            print_wrapped(console, Text(f"{letters[one['model']]}  ", "dim"), said, style="dim")
    for comparison in result["comparisons"]:
        _print_comparison(console, comparison, letters, is_whole=len(result["comparisons"]) <= MOST_DETAILED)
    for group in result["seeds"]:
        _print_seeds(console, group, letters)
    for failure in result["failed"]:
        console.print()
        print_wrapped(console, Text("not scored  ", "bold"), failure_in_words(failure))


def _letters(result: Mapping[str, Any]) -> dict[str, str]:
    """A, B and so on by model."""
    names = [one["model"] for one in result["evaluations"]]
    return {name: chr(ord("A") + number) if number < 26 else f"M{number + 1}" for number, name in enumerate(names)}


def _model_rows(one: Mapping[str, Any], letter: str) -> list[Row]:
    rows = [
        Row(f"{letter}  on {printable(str(one['data']))}"),
        share_row("   accuracy", one["accuracy"]),
        share_row("     length-balanced", one["length"]["balanced"]),
        number_row("   margin", one["margin"], 2),
        number_row("   chosen, nats/token", one["logps/chosen"], 3),
    ]
    if one["difference"] is not None:
        rows.append(
            points_row(f"   points over {printable(str(one['baseline']['model']))}", one["difference"]["accuracy"])
        )
    return rows


def _print_comparison(
    console: Console, comparison: Mapping[str, Any], letters: Mapping[str, str], *, is_whole: bool
) -> None:
    first, second = (letters[model] for model in comparison["models"])
    console.print()
    print_wrapped(
        console,
        Text(f"{second} less {first}", "bold"),
        f", on the {thousands(comparison['pairs'])} pairs that both have",
    )
    for told in (comparison["recipes"] or []) if is_whole else []:
        values = " -> ".join(_shown(value) for value in told["values"])
        print_wrapped(console, Text(f"  {told['key']}  ", "dim"), values)
    if comparison["recipes"] == []:
        print_wrapped(console, Text("  "), "their recipes are equal", style="dim")
    if said := swapped_in_words(comparison["swapped"]):
        print_wrapped(console, Text("  "), said)
    difference = comparison["difference"]
    if difference is None:
        print_wrapped(console, Text("  "), "There is no such pair, so they cannot be compared.")
        return
    rows = difference_rows(difference)
    print_rows(console, rows if is_whole else rows[:1])
    for said in difference_remarks(difference):
        print_wrapped(console, Text("  "), said, style="dim")


def _print_seeds(console: Console, group: Mapping[str, Any], letters: Mapping[str, str]) -> None:
    console.print()
    listed = ", ".join(
        f"{letters[model]} (seed {seed})" for model, seed in zip(group["models"], group["seeds"], strict=True)
    )
    print_wrapped(console, Text("one recipe, several seeds  ", "bold"), listed)
    rows = [share_row("  accuracy", group["accuracy"])]
    if group["length_balanced"] is not None:
        rows.append(share_row("    length-balanced", group["length_balanced"]))
    rows.append(number_row("  margin", group["margin"], 2))
    for key, label in (("difference", "  gain, points"), ("length_balanced_difference", "    length-balanced")):
        if group[key] is not None:
            rows.append(points_row(label, group[key]))
    print_rows(console, rows)
    print_wrapped(
        console, Text("  "), "n counts runs; the intervals are for other seeds on these same pairs.", style="dim"
    )


def _shown(value: Any) -> str:
    return "null" if value is None else printable(str(value))
