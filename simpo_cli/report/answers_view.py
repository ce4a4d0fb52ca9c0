"""Answers of two models on the screen: what was counted, what people said, what judges said."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from simpo_cli.report.console import Console, encodable, printable
from simpo_cli.report.summary import print_wrapped
from simpo_cli.report.text import fixed, percent, percent_range, thousands

_GAP = 2
_NO_INTERVAL = "(no interval)"  # of one prompt, or where all are alike
_FEW_PROMPTS = 30
_SHARES = (("no_end", "no end token"), ("empty", "empty"), ("refusals", "refusals"))
_MODES = {"greedy": "greedy", "sampled": "sampled at temperature {temperature:g}"}


class Row(NamedTuple):
    """One measure of both models and how they differ; all but the label are empty for a heading."""

    label: str
    base: str = ""
    trained: str = ""
    difference: str = ""


def print_answers(console: Console, document: Mapping[str, Any]) -> None:
    """Prints the document of `simpo eval --generate`; narrow terminals get a line for each model.

    Args:
        console: where to, `out` for the command.
        document: of `answers_document`.
    """
    manifest = document["manifest"]
    models = manifest["models"]
    prompts, decoding = manifest["prompts"], manifest["decoding"]
    print_wrapped(console, Text(), f"answers of {models['trained']['name']} and {models['base']['name']}", style="bold")
    print_wrapped(
        console,
        Text(),
        f"{thousands(prompts['count'])} prompts of {prompts['from']}, at most {thousands(decoding['max_new_tokens'])} "
        f"new tokens, by {manifest['engine']} {manifest['engine_version']}",
        style="dim",
    )
    console.print()
    rows = [
        row
        for mode, measures in document["measures"].items()
        for row in [Row(_MODES[mode].format_map(decoding)), *_rows(measures)]
    ]
    _print_rows(console, rows, models)
    for judge in document["judges"]:
        console.print()
        _print_judge(console, judge)
    console.print()
    _print_people(console, document)
    for remark in _remarks(document):
        print_wrapped(console, Text(), remark, style="dim")


def _rows(measures: Mapping[str, Any]) -> list[Row]:
    tokens, repeated = measures["tokens"], measures["repeated_4_grams"]
    rows = [
        Row("  tokens", _number(tokens["base"]), _number(tokens["trained"]), _ratio(tokens["ratio"])),
        Row("  repeated-4", _share(repeated["base"]), _share(repeated["trained"]), _points(repeated)),
    ]
    rows += [
        Row(f"  {label}", _share(measures[key]["base"]), _share(measures[key]["trained"]), _points(measures[key]))
        for key, label in _SHARES
    ]
    for size in (1, 2):
        distinct = measures[f"distinct_{size}"]
        values = ["" if distinct[side] is None else fixed(distinct[side], 3) for side in ("base", "trained")]
        rows.append(Row(f"  distinct-{size}", *values))
    return rows


def _number(measured: Mapping[str, Any]) -> str:
    return _with_interval(measured, lambda value: fixed(value, 1))


def _ratio(measured: Mapping[str, Any] | None) -> str:
    return "" if measured is None else f"× {_with_interval(measured, lambda value: fixed(value, 2))}"


def _share(measured: Mapping[str, Any]) -> str:
    low, high = measured["ci"]
    value = percent(measured["value"])
    return f"{value} {_NO_INTERVAL}" if low is None else f"{value} ({percent_range(max(0.0, low), min(1.0, high))})"


def _points(measure: Mapping[str, Any]) -> str:
    return _with_interval(measure["difference"], lambda value: f"{100 * value:+z.1f}")


def _with_interval(measured: Mapping[str, Any], shown: Any) -> str:
    low, high = measured["ci"]
    interval = _NO_INTERVAL if low is None else f"({shown(low)} to {shown(high)})"
    return f"{shown(measured['value'])} {interval}"


def _print_rows(console: Console, rows: Sequence[Row], models: Mapping[str, Any]) -> None:
    heading = Row("", "base", "trained", "difference")
    shown = [Row(*(encodable(cell, console.encoding) for cell in row)) for row in rows]
    columns = [row for row in shown if row.base]  # a heading may be wider than its column
    widths = [max(cell_len(row[column]) for row in [heading, *columns]) for column in range(len(heading))]
    if sum(widths) + _GAP * (len(widths) - 1) <= console.width:
        for number, row in enumerate([heading, *shown]):
            style = "dim" if number == 0 else ""
            line = Text(style=style)
            for cell, width in zip(row, widths, strict=True):
                line.append(cell + " " * (width - cell_len(cell) + _GAP))
            line.rstrip()
            console.print(line, soft_wrap=True)
    else:
        for row in shown:
            console.print(Text(row.label), soft_wrap=True)
            for side, value in zip(heading[1:], row[1:], strict=True):
                if value:
                    console.print(Text.assemble(f"    {side:<12}", (value, "bold")), soft_wrap=True)
    names = ", ".join(f"{side} is {models[side]['path']}" for side in ("base", "trained"))
    print_wrapped(console, Text(), f"{names}; differences of shares are in points.", style="dim")


def _print_judge(console: Console, judge: Mapping[str, Any]) -> None:
    print_wrapped(console, Text(), f"judged by {judge['judge']} at {judge['url']}", style="bold")
    prompts, replies = judge["prompts"], judge["replies"]
    lines = [
        ("trained wins", judge["win_rate"]),
        ("at equal lengths", judge["length_controlled"]),
        ("same verdict in both orders", judge["position_consistency"]),
    ]
    width = max(len(label) for label, _ in lines)
    for label, measured in lines:
        value = "too few to say" if measured is None else f"{_share(measured)}   n {thousands(measured['n'])}"
        console.print(Text.assemble(f"  {label:<{width}}   ", (value, "bold")), soft_wrap=True)
    lost = ", ".join(
        f"{thousands(count)} {name.replace('_', ' ')}" for name, count in replies.items() if name != "verdict" and count
    )
    said = f"{thousands(prompts['judged'])} of {thousands(prompts['all'])} prompts have a verdict in both orders"
    if prompts["equal_answers"]:
        said += f", {thousands(prompts['equal_answers'])} of them because both answers are the same"
    if lost:
        said += f"; replies without one: {lost}"
    print_wrapped(console, Text("  "), f"{said}.", style="dim")
    if judge["first_shown_wins"] is not None:
        first = percent(judge["first_shown_wins"])
        print_wrapped(console, Text("  "), f"The answer shown first won {first} of the decided verdicts.", style="dim")


def _print_people(console: Console, document: Mapping[str, Any]) -> None:
    people = document["people"]
    if people is None:
        print_wrapped(
            console, Text("to judge   ", "dim"), f"{document['sheet']}   blind; fill in the column verdict, then"
        )
        print_wrapped(console, Text("           "), f"simpo eval {document['folder']}")
        return
    n = thousands(people["win_rate"]["n"])
    console.print(Text("judged by people", "bold"), soft_wrap=True)
    console.print(Text.assemble("  trained wins   ", (f"{_share(people['win_rate'])}   n {n}", "bold")), soft_wrap=True)
    said = ", ".join(f"{thousands(people[name])} {name}" for name in ("wins", "ties", "losses", "open"))
    print_wrapped(console, Text("  "), f"{said}; a tie counts one half.", style="dim")


def _remarks(document: Mapping[str, Any]) -> list[str]:
    prompts = document["manifest"]["prompts"]
    remarks = []
    left_out = ", ".join(f"{thousands(count)} {reason}" for reason, count in prompts["left_out"].items())
    if left_out:
        remarks.append(f"Left out: {left_out}.")
    same = document["measures"]["greedy"]["same_answers"]
    if same:
        remarks.append(f"Both models gave the same greedy answer to {thousands(same)} prompts.")
    if prompts["count"] < _FEW_PROMPTS:
        remarks.append(f"Only {prompts['count']} prompts: too few to conclude much. Ask at least {_FEW_PROMPTS}.")
    remarks.append(f"Answers, and files for AlpacaEval and Arena-Hard: {printable(document['folder'])}")
    return remarks
