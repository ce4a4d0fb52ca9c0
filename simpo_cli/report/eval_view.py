"""The result of `simpo eval` for a person: every number with its 95 % interval and its n."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from simpo_cli.report.console import Console, encodable, printable
from simpo_cli.report.eval_remarks import failure_in_words, remarks
from simpo_cli.report.summary import print_wrapped
from simpo_cli.report.text import fixed, percent, percent_range, thousands
from simpo_cli.report.verdict import gain_in_words

GAP = 3
BASELINES = {"longer_wins": "the longer wins", "surface": "surface features only"}


class Row(NamedTuple):
    """One line of the table, as text; the last three are empty for a heading."""

    label: str
    value: str = ""
    interval: str = ""
    n: str = ""


def print_eval(console: Console, result: Mapping[str, Any]) -> None:
    """Prints the document that `simpo eval --json` prints; narrow terminals get two lines a number.

    Args:
        console: where to, `out` for the command.
        result: the document (DESIGN section 3). What was measured on pairs is {"value", "ci": [low, high], "n"}.
    """
    if "evaluations" in result:
        from simpo_cli.report.eval_together_view import print_together

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
    rows = [Row(*(encodable(cell, console.encoding) for cell in row)) for row in rows]
    heading = Row("", "value", "95 % interval", "n")
    filled = [heading, *(row for row in rows if row.value)]  # a title may run over all columns
    widths = [max(cell_len(row[column]) for row in filled) for column in range(len(heading))]
    if sum(widths) + GAP * (len(widths) - 1) <= console.width:
        _print_columns(console, [heading, *rows], widths)
    else:
        _print_stacked(console, rows)


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
    rows += [Row("to beat"), Row("  a coin", percent(0.5))]
    for name, baseline in (result.get("baselines") or {}).items():
        if baseline is not None or name != "surface":  # no training pairs are known of a model by itself
            rows.append(share_row(f"  {BASELINES.get(name, printable(name))}", baseline))
    rows.append(number_row("margin", result["margin"], 2))
    if result.get("margin_median"):
        rows.append(number_row("  median", result["margin_median"], 2))
    rows += [
        share_row("  past gamma", result["target_reached"]),
        number_row("loss", result["loss"], 3),
        number_row("chosen, nats/token", result["logps/chosen"], 3),
        number_row("rejected, nats/token", result["logps/rejected"], 3),
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
        ("margin", "  margin", 2),
        ("loss", "  loss", 3),
        ("logps/chosen_delta", "  chosen, nats/token", 3),
        ("logps/rejected_delta", "  rejected, nats/token", 3),
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
                rows.append(points_row(f"    difference, points, Holm p {one['p_value_holm']:.2g}", one["difference"]))
    return rows


def share_row(label: str, measured: Mapping[str, Any] | None, pairs: int | None = None) -> Row:
    """A share of pairs; None is too few of them."""
    if measured is None:
        return Row(label, "too few", "", "" if pairs is None else thousands(pairs))
    return Row(label, percent(measured["value"]), percent_range(*measured["ci"]), thousands(measured["n"]))


def points_row(label: str, measured: Mapping[str, Any]) -> Row:
    """A difference of two shares, in percentage points."""
    low, high = measured["ci"]
    interval = f"{100 * low:+z.1f} to {100 * high:+z.1f}"
    return Row(label, f"{100 * measured['value']:+z.1f}", interval, thousands(measured["n"]))


def number_row(label: str, measured: Mapping[str, Any] | float, digits: int) -> Row:
    """A number that is no share."""
    if not isinstance(measured, Mapping):
        return Row(label, fixed(measured, digits))
    if measured["value"] is None:  # JSON has no NaN
        return Row(label, "nan", "", thousands(measured["n"]))
    low, high = measured["ci"]
    interval = "unknown" if low is None or high is None else f"{fixed(low, digits)} to {fixed(high, digits)}"
    return Row(label, fixed(measured["value"], digits), interval, thousands(measured["n"]))


def _change_row(label: str, measured: Mapping[str, Any], digits: int) -> Row:
    """A change, with its sign."""
    low, high = measured["ci"]
    interval = "unknown" if low is None else f"{low:+z.{digits}f} to {high:+z.{digits}f}"
    return Row(label, f"{measured['value']:+z.{digits}f}", interval, thousands(measured["n"]))


def _print_columns(console: Console, rows: list[Row], widths: list[int]) -> None:
    for number, row in enumerate(rows):
        if number and not row.value:
            print_wrapped(console, Text(), row.label)
            continue
        spaces = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        label = row.label + spaces[0]
        value, interval, n = (space + cell for space, cell in zip(spaces[1:], row[1:], strict=True))
        gap = " " * GAP
        style = "dim" if number == 0 else ""
        line = Text.assemble((label, style), gap, (value, style or "bold"), gap, (interval, style), gap, (n, "dim"))
        line.rstrip()
        console.print(line, soft_wrap=True)


def _print_stacked(console: Console, rows: Sequence[Row]) -> None:
    for label, value, interval, n in rows:
        indent = " " * (len(label) - len(label.lstrip()))
        print_wrapped(console, Text(indent), label, style="" if value else "dim")
        if value:
            remark = ", ".join(part for part in (interval, n and f"n {n}") if part)
            console.print(
                Text.assemble(f"{indent}  ", (value, "bold"), (remark and f" ({remark})", "dim")), soft_wrap=True
            )
