"""The audit of preference pairs for a person: lengths, what gives the label away, findings; and with `--model` the
model on the pairs at step 0, and what it means for a run. The page draws the same tables. Findings are also written as
GitHub's workflow commands, which show as annotations beside the files of a pull request.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.text import Text

from simpo_cli.audit.columns import histogram
from simpo_cli.audit.examine import Examination
from simpo_cli.audit.surface import leading
from simpo_cli.data.pair import record_note
from simpo_cli.evaluate.tables import RULES
from simpo_cli.formatting import (
    Cell,
    Measured,
    few_prompts,
    fixed,
    interval_in_words,
    number_cell,
    percent,
    share_cell,
    thousands,
)
from simpo_cli.report.console import Console, blocks, encodable, print_table, print_wrapped
from simpo_cli.report.findings_view import print_findings, shared_folder
from simpo_cli.table import Bars, Remark, Row, Table

SHOWN_PARTS = 10
_SHOWN_FEATURES = 4
_MENTIONED_SHARE = 0.01  # of letters in scripts without spaces
_MUCH_PULL = 0.25  # the weight of a pair that is past the target by a reward of 1.1
_LABEL_WIDTH = 21
_WIDE = 60
_NUMBERS = ("min", "p5", "median", "p95", "max", "mean")
_DROPPED = ("p5", "min", "p95")
"""Numbers that a narrow terminal is not shown, in this order."""
_COLUMNS = {
    "prompt_len": "prompt",
    "chosen_len": "chosen",
    "rejected_len": "rejected",
    "difference": "chosen - rejected",
}


def print_stats(console: Console, document: Mapping[str, Any], examination: Examination) -> None:
    """Print the document that `simpo stats --json` prints as tables, figures (of the examination) and findings."""
    _print_heading(console, document, examination.reader.examples)
    console.print()
    print_table(console, lengths_table(document, examination), styles=("bold",) * 6, right=True, drop=_DROPPED)
    console.print()
    print_table(console, bias_table(document), styles=("bold", "", "dim", "dim"), right=True)
    console.print()
    if document["model"] is not None:
        print_start(console, document["model"])
        console.print()
    if len(document["sources"]) > 1:
        folder = shared_folder([str(source["path"]) for source in document["sources"]])
        named = [(str(source["path"]).removeprefix(folder), source) for source in document["sources"]]
        _print_parts(console, "By file", named)
    if document["groups"] is not None:
        named = [(str(value["value"]), value) for value in document["groups"]["values"]]
        _print_parts(console, f"By {document['groups']['field']}", named)
    print_findings(console, document, examination.refused.first)


def lengths_table(document: Mapping[str, Any], examination: Examination) -> Table:
    """How long prompts and responses are, with chosen and rejected as histograms on one scale, their difference beside.

    The figures end at the 99th percentiles.
    """
    rows = []
    for key, label in _COLUMNS.items():
        column, sign = document["columns"][key], "+" if key == "difference" else ""
        shown = [f"{column[name]:{sign if column[name] else ''},.{int(name == 'mean')}f}" for name in _NUMBERS]
        rows.append(Row(label, tuple(map(Cell, shown))))
    low, high = document["columns"]["difference"]["mean_ci"]
    remarks = []
    if low is not None:
        interval = f"95 % CI {low:+,.1f} to {high:+,.1f}, by prompt"
        remarks.append(Remark("interval", f"mean of chosen - rejected: {interval}"))
    chosen, rejected = examination.chosen_len, examination.rejected_len
    longest = float(np.percentile(np.concatenate([chosen, rejected]), 99)) or 1.0
    reach = float(np.percentile(np.abs(chosen - rejected), 99)) or 1.0
    figures = []
    for label, values, least, most in (
        ("chosen", chosen, 0.0, longest),
        ("rejected", rejected, 0.0, longest),
        ("chosen - rejected", chosen - rejected, -reach, reach),
    ):
        shape = histogram(values, low=least, high=most)
        figures.append(Bars(label, shape["hist"], shape["bin_edges"]))
    return Table(_NUMBERS, rows, remarks=remarks, figures=figures)


def bias_table(document: Mapping[str, Any]) -> Table:
    """What tells the label without being the better answer, and what that means for a trained model."""
    bias, surface = document["bias"], document["bias"]["surface"]
    rows, remarks = [_rule_row(RULES["longer_wins"], bias)], []
    if bias["ties"]:
        remarks.append(Remark("ties", "Ties, that is, responses of equal length, count one half."))
    if surface is not None:
        rows.append(_rule_row(f"{RULES['surface']}, {surface['folds']}-fold by prompt", surface))
        low, _ = surface["ci"]
        bar = "As far as these pairs can tell, the surface is no better than a random baseline of 50 %."
        if low is not None and low > 0.5:
            bar = f"A trained model has to beat {percent(surface['value'])}, not 50 %."
        remarks.append(Remark("bar", bar))
        if leads := leading(surface["weights"], most=_SHOWN_FEATURES):
            listed = ", ".join(f"{name} {weight:+z.2f}" for name, weight in leads)
            remarks.append(Remark("features", f"The surface rule goes by: {listed} (logistic weights)."))
    if few := few_prompts(document["input"]):
        remarks.append(Remark("few prompts", few))
    columns = ("accuracy", "95 % interval", "pairs", "ties")
    return Table(columns, rows, title="Could a model win by length alone?", remarks=remarks)


def parts_table(title: str, named: Sequence[tuple[str, Mapping[str, Any]]], *, with_codes: bool = False) -> Table:
    """What each part of the pairs gives by itself; findings are counted, or listed by their codes."""
    rows = []
    for name, part in named:
        if not part["count"]:
            rows.append(Row(name, tuple(map(Cell, ("0", "-", "-", "-", "-")))))
            continue
        findings = Cell(thousands(sum(part["findings"].values())))
        if with_codes:
            findings = Cell(", ".join(f"{code} {thousands(count)}" for code, count in part["findings"].items()))
        lengths = (Cell(f"{part[f'mean_{side}_len']:,.1f}") for side in ("chosen", "rejected"))
        pairs = Cell(thousands(part["count"]), f"{thousands(part['prompts'])} prompts" if with_codes else "")
        rows.append(Row(name, (pairs, *lengths, share_cell(part["longer_wins"]), findings)))
    return Table(("pairs", "chosen", "rejected", "longer wins", "findings"), rows, title=title)


def unit_in_words(document: Mapping[str, Any]) -> str:
    """What lengths are counted in: `words`, or `tokens of MODEL, cut at 2,048 (prompts at 1,800)`."""
    tokens, share = document["input"]["tokens"], document["input"]["unspaced_share"]
    if tokens is None:
        unspaced = f" ({percent(share)} of the responses' letters are of scripts without spaces)"
        return str(document["unit"]) + (unspaced if share >= _MENTIONED_SHARE else "")
    if tokens["max_length"] is None:
        return f"tokens of {tokens['tokenizer']}, nothing cut"
    limits = f"{thousands(tokens['max_length'])} (prompts at {thousands(tokens['max_prompt_length'])})"
    return f"tokens of {tokens['tokenizer']}, cut at {limits}"


def print_start(console: Console, start: Mapping[str, Any]) -> None:
    """Print what `--model` adds to the document: accuracy, margins, loss, log-probs and gaps at step 0."""
    console.print(Text("What could a run learn?", "bold"), soft_wrap=True)
    print_wrapped(console, Text("  "), scored_in_words(start))
    for name, text in start_rows(start):
        print_wrapped(console, Text(f"  {name}".ljust(_LABEL_WIDTH)), text)
        if name == "margin":
            _print_margins(console, start["margin"]["histogram"], start["objective"]["gamma"])
    console.print()
    for sentence in start_in_words(start):
        print_wrapped(console, Text("  "), sentence)


def start_rows(start: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The name of each number that was measured, and the number with its interval and what it is."""
    likely = " nats a token; the nearer to 0, the more the responses are what this model would write itself"
    return [
        ("accuracy", f"{_share(start['accuracy'])}: the chosen response is the likelier one"),
        ("margin", f"{_mean(start['margin'], 2)}: beta × (m(chosen) - m(rejected))"),
        ("past gamma", f"{_share(start['target_reached'])}: such pairs teach little"),
        ("loss", _mean(start["loss"], 3)),
        ("gradient weight", f"{_mean(start['gradient_weight'], 2)}: 1 pulls fully, 0 has nothing left to pull"),
        ("chosen", f"{_mean(start['logps/chosen'], 3)} nats a token"),
        ("rejected", f"{_mean(start['logps/rejected'], 3)}{likely}"),
    ]


def scored_in_words(start: Mapping[str, Any]) -> str:
    """Which pairs were scored, by which model, under which objective."""
    objective = start["objective"]
    count = f"{thousands(start['pairs'])} pairs of {thousands(start['prompts'])} prompts"
    if start["pairs"] < start["of_pairs"]:
        count += f", the first of {thousands(start['of_pairs'])} pairs by hash of the prompt"
    return (
        f"{start['model']} as it is, on {count}, cut at {thousands(start['max_length'])} tokens; "
        f"beta {objective['beta']:g}, gamma {objective['gamma']:g} (gamma/beta {objective['gamma_beta_ratio']:g})"
    )


def start_in_words(start: Mapping[str, Any]) -> list[str]:
    """Whether a run can learn from these pairs, where their gaps lie, and what to change, with the reasons."""
    weight, gap = start["gradient_weight"]["value"], start["gap"]
    room = f"A pair pulls with {fixed(weight, 2)} of its full weight on average"
    if start["accuracy"]["ci"][1] < 0.5:
        room += ", and the model prefers the rejected response in most pairs: see first that the labels are right."
    elif weight >= _MUCH_PULL:
        room += ": there is something to learn."
    else:
        room += ": the loss is saturated, most of what these pairs teach is known to this model already."
    return [
        room,
        f"The gap m(chosen) - m(rejected) is {fixed(gap['median'], 2)} nats a token in the middle, "
        f"{fixed(gap['p5'], 2)} to {fixed(gap['p95'], 2)} in 90 % of the pairs. Which gamma/beta, beta and rate are "
        "good is not seen there: simpo tune searches them.",
        *(f"try  {' '.join(one['overrides'])}   {one['why']}" for one in start["suggestions"]),
    ]


def _print_heading(console: Console, document: Mapping[str, Any], examples: Sequence[str]) -> None:
    source = document["input"]
    files = [str(file["path"]) for file in source["files"]]
    named = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    print_wrapped(console, Text(), named, style="bold")
    print_wrapped(console, Text(), source["decision"])
    for remark in (*source["remarks"], *examples):
        print_wrapped(console, Text("  "), remark)
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
    print_wrapped(console, Text(), " · ".join([*averages, unit_in_words(document)]))
    for warning, count in source["warnings"].items():
        note = record_note(warning)
        if note is None:
            print_wrapped(console, Text("note  ", "yellow"), f"{warning}" + (f" ({count})" if count > 1 else ""))
        elif not note.finding:
            print_wrapped(console, Text("note  ", "yellow"), f"{thousands(count)} {warning}")


def _rule_row(name: str, measured: Mapping[str, Any]) -> Row:
    cell = share_cell(measured)
    counts = (Cell(thousands(measured[key])) for key in ("n", "ties"))
    return Row(f"  {name}", (Cell(cell.text), Cell(cell.below), *counts))


def _print_parts(console: Console, title: str, named: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    print_table(console, parts_table(title, named[:SHOWN_PARTS]), styles=("bold",) * 5, right=True)
    if len(named) > SHOWN_PARTS:
        print_wrapped(console, Text("  "), f"and {len(named) - SHOWN_PARTS} more: see --json", style="dim")
    console.print()


def _print_margins(console: Console, histogram: Mapping[str, Any], gamma: float) -> None:
    """The margins of the pairs as a figure one line high, with the places of 0 and gamma under it."""
    counts, edges = histogram["hist"], histogram["bin_edges"]
    low, high = f"{edges[0]:+.1f}", f"{edges[-1]:+.1f}"
    indent = " " * (_LABEL_WIDTH if console.width >= _WIDE else 2)
    figure = encodable(blocks(counts), console.encoding)
    width = (edges[-1] - edges[0]) / len(counts) or 1.0
    at_zero, at_gamma = len(counts) // 2, min(len(counts) - 1, int((gamma - edges[0]) / width))
    console.print(Text.assemble(indent, (low, "dim"), " ", (figure, "cyan"), " ", (high, "dim")), soft_wrap=True)
    marks = " " * (len(indent) + len(low) + 1 + at_zero)
    marks += "^ 0 and gamma" if at_gamma == at_zero else "^0".ljust(at_gamma - at_zero) + "^gamma"
    console.print(Text(marks, "dim"), soft_wrap=True)


def _share(measured: Measured) -> str:
    cell = share_cell(measured)
    return f"{cell.text} ({interval_in_words(cell)}, n = {thousands(measured['n'])})"


def _mean(measured: Measured, digits: int) -> str:
    cell = number_cell(measured, digits)
    return f"{cell.text} ({interval_in_words(cell)})"
