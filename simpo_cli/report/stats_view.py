"""What `simpo stats` shows a person: lengths, whether length alone predicts the label, and the findings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.text import Text

from simpo_cli.audit.examine import Examination
from simpo_cli.audit.findings import TITLES
from simpo_cli.audit.lengths import histogram
from simpo_cli.report.console import Console, encodable
from simpo_cli.report.start_view import print_start
from simpo_cli.report.summary import print_wrapped
from simpo_cli.report.text import blocks, percent, percent_range, thousands

GAP = 3
SHOWN_PLACES = 3
FEW_PROMPTS = 30

# from the widest table to the narrowest that still says something
COLUMN_SETS = (
    ("min", "p5", "median", "p95", "max", "mean"),
    ("min", "median", "p95", "max", "mean"),
    ("median", "p95", "max", "mean"),
    ("median", "max", "mean"),
)
ROWS = (
    ("prompt_len", "prompt"),
    ("chosen_len", "chosen"),
    ("rejected_len", "rejected"),
    ("difference", "chosen - rejected"),
)
PASSED = (
    ("EMP001", "empty"),
    ("DUP003", "identical"),
    ("DUP001", "duplicates"),
    ("LBL002", "contradictions"),
    ("LEN001", "length"),
)


def print_stats(console: Console, document: Mapping[str, Any], examination: Examination) -> None:
    """Print the document as a table, figures and findings.

    Args:
        console: where to.
        document: what `simpo stats --json` prints.
        examination: the lengths themselves, for the figures.
    """
    _print_heading(console, document)
    console.print()
    _print_table(console, document["columns"])
    console.print()
    _print_shapes(console, examination)
    console.print()
    _print_bias(console, document)
    console.print()
    if document.get("model") is not None:
        print_start(console, document["model"])
        console.print()
    _print_findings(console, document["findings"], [str(file["path"]) for file in document["input"]["files"]])


def _print_heading(console: Console, document: Mapping[str, Any]) -> None:
    source = document["input"]
    files = [str(file["path"]) for file in source["files"]]
    named = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    print_wrapped(console, Text(), named, style="bold")
    print_wrapped(console, Text(), source["decision"])
    account = [
        f"{thousands(source['records_read'])} records",
        f"{thousands(document['count'])} pairs",
        f"{thousands(source['prompts'])} prompts",
    ]
    if source["malformed"]:
        account.append(f"{thousands(source['malformed'])} malformed")
    if source["no_signal"]:
        reasons = ", ".join(f"{thousands(count)} {reason}" for reason, count in source["no_signal"].items())
        account.append(f"training drops {thousands(sum(source['no_signal'].values()))} ({reasons})")
    print_wrapped(console, Text(), " · ".join(account))
    averages = [f"{name} {thousands(document[name])}" for name in ("avg_chosen_len", "avg_rejected_len")]
    print_wrapped(console, Text(), " · ".join([*averages, _unit(document)]))
    for warning, count in source["warnings"].items():
        if " is " in warning:  # said of a file; what is said of records has a finding
            print_wrapped(console, Text("note  ", "yellow"), f"{warning}" + (f" ({count})" if count > 1 else ""))


def _unit(document: Mapping[str, Any]) -> str:
    """What lengths are counted in: `words`, or `tokens of MODEL, cut at 2,048 (prompts at 1,800)`."""
    tokens = document["input"]["tokens"]
    if tokens is None:
        return "words"
    if tokens["max_length"] is None:
        return f"tokens of {tokens['tokenizer']}, nothing cut"
    limits = f"{thousands(tokens['max_length'])} (prompts at {thousands(tokens['max_prompt_length'])})"
    return f"tokens of {tokens['tokenizer']}, cut at {limits}"


# Lengths


def _print_table(console: Console, columns: Mapping[str, Mapping[str, Any]]) -> None:
    label_width = max(len(label) for _, label in ROWS)
    for names in COLUMN_SETS:
        cells = [[_number(columns[key][name], name, key) for name in names] for key, _ in ROWS]
        widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(names)]
        if label_width + sum(widths) + GAP * len(widths) <= console.width or names is COLUMN_SETS[-1]:
            break
    heading = " " * label_width + "".join(" " * GAP + n.rjust(w) for n, w in zip(names, widths, strict=True))
    console.print(Text(heading, "dim"), soft_wrap=True)
    for (_, label), row in zip(ROWS, cells, strict=True):
        numbers = "".join(" " * GAP + cell.rjust(w) for cell, w in zip(row, widths, strict=True))
        console.print(Text.assemble(label.ljust(label_width), (numbers, "bold")), soft_wrap=True)
    low, high = columns["difference"]["mean_ci"]
    if low is not None:
        remark = f"mean of chosen - rejected: 95 % CI {low:+,.1f} to {high:+,.1f}, by prompt"
        print_wrapped(console, Text(), remark, style="dim")


def _number(value: float, name: str, column: str) -> str:
    sign = "+" if column == "difference" and value else ""
    if name == "mean":
        return f"{value:{sign},.1f}"
    return f"{value:{sign},.0f}"


def _print_shapes(console: Console, examination: Examination) -> None:
    """A histogram a line: chosen and rejected on one scale, their difference on its own."""
    chosen, rejected = examination.chosen_len, examination.rejected_len
    high = float(np.percentile(np.concatenate([chosen, rejected]), 99)) or 1.0
    difference = chosen - rejected
    reach = float(np.percentile(np.abs(difference), 99)) or 1.0
    label_width = max(len(label) for _, label in ROWS)
    for label, values, low, top in (
        ("chosen", chosen, 0.0, high),
        ("rejected", rejected, 0.0, high),
        ("chosen - rejected", difference, -reach, reach),
    ):
        figure = encodable(blocks(histogram(values, low=low, high=top).hist), console.encoding)
        scale = (f"{low:+,.0f}", f"{top:+,.0f}") if low else (f"{low:,.0f}", f"{top:,.0f}")
        parts = (
            label.ljust(label_width),
            "   ",
            (scale[0].rjust(7), "dim"),
            " ",
            (figure, "cyan"),
            " ",
            (scale[1], "dim"),
        )
        line = Text.assemble(*parts)
        if line.cell_len > console.width:
            line = Text.assemble(label.ljust(label_width), " ", (figure, "cyan"))
        console.print(line, soft_wrap=True)
    print_wrapped(console, Text(), "outermost bins also hold what lies beyond", style="dim")


# Length as a rule


def _print_bias(console: Console, document: Mapping[str, Any]) -> None:
    bias = document["bias"]
    low, high = bias["ci"]
    console.print(Text("Could a model win by length alone?", "bold"), soft_wrap=True)
    interval = "unknown" if low is None else percent_range(low, high)
    ties = f", {thousands(bias['ties'])} of equal length count one half" if bias["ties"] else ""
    text = f"{percent(bias['value'])} (95 % CI {interval}; n = {thousands(bias['n'])} pairs{ties})"
    print_wrapped(console, Text("  the longer wins   "), text)
    if document["input"]["prompts"] < FEW_PROMPTS:
        print_wrapped(console, Text("  "), f"Under {FEW_PROMPTS} prompts: too few to conclude much.", style="dim")


# Findings


def _place(row: str, files: Sequence[str]) -> str:
    """A pair's place, shortened where there is only one file: `prefs.jsonl:17` is line 17."""
    if len(files) == 1 and row.startswith(files[0]):
        row = row[len(files[0]) :].removeprefix(", ")
        return f"line {row[1:]}" if row.startswith(":") else row
    return row


def _print_findings(console: Console, findings: Sequence[Mapping[str, Any]], files: Sequence[str]) -> None:
    console.print(Text("Findings", "bold"), soft_wrap=True)
    number_width = max((len(thousands(f["count"])) for f in findings), default=0)
    for finding in findings:
        style = "red" if finding["severity"] == "error" else "yellow"
        lead = Text.assemble(
            "  ",
            (finding["severity"].ljust(7), style),
            f"  {finding['code']}  ",
            thousands(finding["count"]).rjust(number_width),
            "  ",
        )
        print_wrapped(console, lead, TITLES[finding["code"]])
        indent = Text(" " * (11 if console.width < 80 else lead.cell_len))
        if finding["rows"]:
            places = ", ".join(_place(str(row), files) for row in finding["rows"][:SHOWN_PLACES])
            more = ", ..." if finding["count"] > SHOWN_PLACES else ""
            print_wrapped(console, indent, f"{places}{more}", style="dim")
        print_wrapped(console, indent, finding["hint"], style="dim")
    codes = {finding["code"] for finding in findings}
    passed = [name for code, name in PASSED if code not in codes]
    if passed:
        print_wrapped(console, Text("  passed: ", "green"), ", ".join(passed))
