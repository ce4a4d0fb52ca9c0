"""The result of `simpo eval` for a person: every number with its 95 % interval and its n; of several models a line
each, then every two against one another.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from simpo_cli.evaluate.matching import swapped_in_words
from simpo_cli.formatting import (
    LOG_PROB_DIGITS,
    LOSS_DIGITS,
    MARGIN_DIGITS,
    Cell,
    Measured,
    change_cell,
    fixed,
    number_cell,
    p_in_words,
    percent,
    points_cell,
    share_cell,
    thousands,
)
from simpo_cli.report.console import Console, printable
from simpo_cli.report.eval_remarks import difference_remarks, failure_in_words, remarks
from simpo_cli.report.summary import print_wrapped
from simpo_cli.report.terminal import Column, Row, print_label, print_table
from simpo_cli.report.verdict import gain_in_words

BASELINES = {"longer_wins": "the longer wins", "surface": "surface features only"}

_COLUMNS = (
    Column("value", "bold", ends_aligned=True),
    Column("95 % interval", ends_aligned=True),
    Column("n", "dim", ends_aligned=True),
)


def print_eval(console: Console, result: Mapping[str, Any]) -> None:
    """Prints the document that `simpo eval --json` prints; narrow terminals get two lines a number.

    Args:
        console: where to, `out` for the command.
        result: the document (DESIGN section 3). What was measured on pairs is {"value", "ci": [low, high], "n"}.
    """
    if "evaluations" in result:
        print_together(console, result)
        return
    print_wrapped(console, Text(), result["model"], style="bold")
    print_wrapped(console, Text("on ", "dim"), str(result["data"]))
    if result.get("not_compared"):
        print_wrapped(console, Text("not compared  ", "bold"), failure_in_words(result["not_compared"]))
    if result.get("difference"):
        said = gain_in_words({"before": result["baseline"], "after": result, "difference": result["difference"]})
        console.print()
        print_wrapped(console, Text(), said)
    console.print()
    print_rows(console, eval_rows(result))
    console.print()
    for remark in remarks(result):
        print_wrapped(console, Text(), remark, style="dim")


def print_rows(console: Console, rows: Sequence[Row]) -> None:
    """The table in columns, or where it is too wide with two lines a number."""
    print_table(console, _COLUMNS, rows, stack=_print_stacked)


def eval_rows(result: Mapping[str, Any]) -> list[Row]:
    """The lines of the table, in the order that they are read."""
    rows = [share_row("accuracy", result["accuracy"])]
    length = result.get("length") or {}
    for name, label in (
        ("chosen_longer", "  chosen is longer"),
        ("chosen_shorter", "  chosen is shorter"),
        ("balanced", "  length-balanced"),
    ):
        if name in length:
            rows.append(share_row(label, length[name]))
    rows += [Row("to beat"), Row("  a coin", (percent(0.5),))]
    for name, baseline in (result.get("baselines") or {}).items():
        if baseline is not None or name != "surface":  # no training pairs are known of a model by itself
            rows.append(share_row(f"  {BASELINES.get(name, printable(name))}", baseline))
    rows.append(number_row("margin", result["margin"], MARGIN_DIGITS))
    if result.get("margin_median"):
        rows.append(number_row("  median", result["margin_median"], MARGIN_DIGITS))
    rows += [
        share_row("  past gamma", result["target_reached"]),
        number_row("loss", result["loss"], LOSS_DIGITS),
        number_row("chosen, nats/token", result["logps/chosen"], LOG_PROB_DIGITS),
        number_row("rejected, nats/token", result["logps/rejected"], LOG_PROB_DIGITS),
    ]
    rows += _length_rows(length)
    calibration = result.get("calibration")
    if calibration:
        rows += [
            number_row("calibration error", calibration["ece"], 3),
            number_row("  Brier score", calibration["brier"], 3),
        ]
    return [*rows, *_comparison(result), *_save(result), *_slices(result)]


def _length_rows(length: Mapping[str, Any]) -> list[Row]:
    rows = []
    if length.get("spearman") is not None:
        rows.append(number_row("reward with length, Spearman", length["spearman"], 2))
    if length.get("spearman_within") is not None:
        rows.append(number_row("  within pairs", length["spearman_within"], 2))
    buckets = length.get("buckets") or []
    if len(buckets) > 1:
        rows.append(Row("accuracy by chosen - rejected, tokens"))
        for one in buckets:
            rows.append(share_row(f"  {span_of(one)}", one["accuracy"], one["pairs"]))
    return rows


def span_of(bucket: Mapping[str, Any]) -> str:
    """The lengths of a bucket, such as -40 to -8."""
    low, high = (f"{bound:+,}" if bound else "0" for bound in (bucket["from"], bucket["to"]))
    return low if low == high else f"{low} to {high}"


def _comparison(result: Mapping[str, Any]) -> list[Row]:
    baseline, difference = result.get("baseline"), result.get("difference")
    if not baseline or not difference:
        return []
    rows = [Row(f"against {printable(str(baseline['model']))}")]
    if "accuracy" in baseline:
        rows.append(share_row("  its accuracy", baseline["accuracy"]))
    return [*rows, *difference_rows(difference)]


def difference_rows(difference: Mapping[str, Any]) -> list[Row]:
    """One model less another; rewards only where they can be compared."""
    rows = [points_row("  difference, points", difference["accuracy"])]
    if difference.get("length_balanced") is not None:
        rows.append(points_row("    length-balanced", difference["length_balanced"]))
    for key, label, digits in (
        ("margin", "  margin", MARGIN_DIGITS),
        ("loss", "  loss", LOSS_DIGITS),
        ("logps/chosen_delta", "  chosen, nats/token", LOG_PROB_DIGITS),
        ("logps/rejected_delta", "  rejected, nats/token", LOG_PROB_DIGITS),
    ):
        if difference.get(key) is not None:
            rows.append(_change_row(label, difference[key], digits))
    if difference.get("chosen_fell") is not None:
        rows.append(share_row("  chosen became less likely", difference["chosen_fell"]))
    return rows


def _save(result: Mapping[str, Any]) -> list[Row]:
    save = result.get("save")
    if not save:
        return []
    difference = save["difference"]
    return [
        Row("what the save cost, against float32"),
        points_row("  accuracy, points", difference["accuracy"]),
        _change_row("  margin", difference["margin"], 3),
    ]


def _slices(result: Mapping[str, Any]) -> list[Row]:
    rows = []
    for column, slices in (result.get("slices") or {}).items():
        rows.append(Row(f"by {printable(column)}"))
        for one in slices:
            name = "(none)" if one["value"] is None else printable(one["value"])
            rows.append(share_row(f"  {name if len(name) <= 30 else name[:29] + '…'}", one["accuracy"], one["pairs"]))
            if one["difference"] is not None:
                label = f"    difference, points, Holm {p_in_words(one['p_value_holm'])}"
                rows.append(points_row(label, one["difference"]))
    return rows


def share_row(label: str, measured: Measured | None, pairs: int | None = None) -> Row:
    """A share of pairs; None is too few of them."""
    if measured is None:
        return Row(label, ("too few", "", "" if pairs is None else thousands(pairs)))
    return _row(label, share_cell(measured), measured["n"])


def points_row(label: str, measured: Measured) -> Row:
    """A difference of two shares, in percentage points."""
    return _row(label, points_cell(measured), measured["n"])


def number_row(label: str, measured: Measured | float, digits: int) -> Row:
    """A number that is no share."""
    if not isinstance(measured, Mapping):
        return Row(label, (fixed(measured, digits),))
    if measured["value"] is None:  # JSON has no NaN
        return Row(label, ("nan", "", thousands(measured["n"])))
    return _row(label, number_cell(measured, digits), measured["n"])


def _change_row(label: str, measured: Measured, digits: int) -> Row:
    """A change, with its sign."""
    return _row(label, change_cell(measured, digits), measured["n"])


def _row(label: str, cell: Cell, n: int) -> Row:
    return Row(label, (cell.text, cell.below, thousands(n)))


def _print_stacked(console: Console, rows: Sequence[Row]) -> None:
    for row in rows:
        print_label(console, row.label, style="" if row.cells else "dim")
        if row.cells:
            value, *others = row.cells
            interval, n = others or ("", "")
            remark = ", ".join(part for part in (interval, n and f"n {n}") if part)
            indent = " " * (len(row.label) - len(row.label.lstrip()) + 2)
            console.print(Text.assemble(indent, (value, "bold"), (remark and f" ({remark})", "dim")), soft_wrap=True)


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
