"""The result of `simpo eval` for a person: every number with its 95 % interval and its n."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from simpo_cli.report.console import Console, encodable, printable
from simpo_cli.report.summary import print_wrapped
from simpo_cli.report.text import fixed, percent, percent_range, thousands

FEW_PROMPTS = 30
GAP = 3
BASELINES = {"longer_wins": "the longer wins", "surface": "surface features only"}
TESTS = {"mcnemar-exact": "exact McNemar test", "sign-flip-by-prompt": "sign-flip test by prompt"}


class Row(NamedTuple):
    """One line of the table, as text; the last three are empty for a heading."""

    label: str
    value: str = ""
    interval: str = ""
    n: str = ""


def print_eval(console: Console, result: Mapping[str, Any]) -> None:
    """Prints the document that `simpo eval --json` prints, as a table; narrow terminals get two lines a number.

    Args:
        console: where to, `out` for the command.
        result: the document (DESIGN section 3). What was measured on pairs is {"value", "ci": [low, high], "n"}.
    """
    print_wrapped(console, Text(), result["model"], style="bold")
    print_wrapped(console, Text("on ", "dim"), str(result["data"]))
    console.print()
    rows = [Row(*(encodable(cell, console.encoding) for cell in row)) for row in eval_rows(result)]
    heading = Row("", "value", "95 % interval", "n")
    widths = [max(cell_len(row[column]) for row in [heading, *rows]) for column in range(len(heading))]
    if sum(widths) + GAP * (len(widths) - 1) <= console.width:
        _print_columns(console, [heading, *rows], widths)
    else:
        _print_stacked(console, rows)
    console.print()
    for remark in _remarks(result):
        print_wrapped(console, Text(), remark, style="dim")


def eval_rows(result: Mapping[str, Any]) -> list[Row]:
    """The lines of the table, in the order that they are read."""
    rows = [_share("accuracy", result["accuracy"])]
    length = result.get("length") or {}
    for name, label in (
        ("chosen_longer", "  chosen is longer"),
        ("chosen_shorter", "  chosen is shorter"),
        ("balanced", "  length-balanced"),
    ):
        if name in length:
            rows.append(_share(label, length[name]))
    rows += [Row("to beat"), Row("  a coin", percent(0.5))]
    for name, baseline in (result.get("baselines") or {}).items():
        rows.append(_share(f"  {BASELINES.get(name, printable(name))}", baseline))
    rows += [
        _number("loss", result["loss"], 3),
        _number("margin", result["margin"], 2),
        _share("margin past gamma", result["target_reached"]),
        _number("chosen, nats/token", result["logps/chosen"], 3),
        _number("rejected, nats/token", result["logps/rejected"], 3),
    ]
    if length.get("spearman") is not None:
        rows.append(_number("reward with length, Spearman", length["spearman"], 2))
    return rows + _comparison(result)


def _comparison(result: Mapping[str, Any]) -> list[Row]:
    baseline, difference = result.get("baseline"), result.get("difference")
    if not baseline or not difference:
        return []
    rows = [Row(f"against {printable(str(baseline['model']))}")]
    if "accuracy" in baseline:
        rows.append(_share("  its accuracy", baseline["accuracy"]))
    gain = difference["accuracy"]
    low, high = gain["ci"]
    return [
        *rows,
        Row(
            "  difference, points",
            f"{100 * gain['value']:+z.1f}",
            f"{100 * low:+z.1f} to {100 * high:+z.1f}",
            thousands(gain["n"]),
        ),
    ]


def _remarks(result: Mapping[str, Any]) -> list[str]:
    pairs = result["pairs"]
    prompts = result.get("prompts", pairs)
    remarks = [f"{thousands(pairs)} pairs of {thousands(prompts)} prompts; intervals are by prompt."]
    if result.get("ties"):
        remarks.append(f"Equal rewards: {thousands(result['ties'])} pairs, counted one half.")
    if any(stratum is None for name, stratum in (result.get("length") or {}).items() if name != "spearman"):
        remarks.append("Too few: under 10 pairs in which the chosen response is longer (or shorter).")
    difference = result.get("difference")
    if result.get("baseline") and difference:
        p_value = difference["p_value"]
        chance = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
        counts = ", ".join(
            f"{thousands(difference[name])} pairs {said}"
            for name, said in (("wins", "won"), ("losses", "lost"), ("ties", "the same"))
            if name in difference
        )
        test = TESTS.get(difference["test"], printable(str(difference["test"])))
        remarks.append(f"Difference: {chance} ({test})" + (f"; {counts}." if counts else "."))
    if prompts < FEW_PROMPTS:
        remarks.append(f"Only {prompts} prompts: too few to conclude much. Evaluate on at least {FEW_PROMPTS}.")
    return remarks


def _share(label: str, measured: Mapping[str, Any] | None) -> Row:
    if measured is None:
        return Row(label, "too few")
    low, high = measured["ci"]
    return Row(label, percent(measured["value"]), percent_range(low, high), thousands(measured["n"]))


def _number(label: str, measured: Mapping[str, Any] | float, digits: int) -> Row:
    if not isinstance(measured, Mapping):
        return Row(label, fixed(measured, digits))
    if measured["value"] is None:  # JSON has no NaN
        return Row(label, "nan", "", thousands(measured["n"]))
    low, high = measured["ci"]
    interval = "unknown" if low is None or high is None else f"{fixed(low, digits)} to {fixed(high, digits)}"
    return Row(label, fixed(measured["value"], digits), interval, thousands(measured["n"]))


def _print_columns(console: Console, rows: list[Row], widths: list[int]) -> None:
    for number, row in enumerate(rows):
        spaces = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        label = row.label + spaces[0]
        value, interval, n = (space + cell for space, cell in zip(spaces[1:], row[1:], strict=True))
        gap = " " * GAP
        style = "dim" if number == 0 else ""
        line = Text.assemble((label, style), gap, (value, style or "bold"), gap, (interval, style), gap, (n, "dim"))
        line.rstrip()
        console.print(line, soft_wrap=True)


def _print_stacked(console: Console, rows: list[Row]) -> None:
    for label, value, interval, n in rows:
        indent = " " * (len(label) - len(label.lstrip()))
        print_wrapped(console, Text(indent), label, style="" if value else "dim")
        if value:
            remark = ", ".join(part for part in (interval, n and f"n {n}") if part)
            console.print(
                Text.assemble(f"{indent}  ", (value, "bold"), (remark and f" ({remark})", "dim")), soft_wrap=True
            )
