"""The audit of preference pairs for a person: lengths, what gives the label away, findings; and with `--model` the
model on the pairs at step 0, and what it means for a run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.cells import cell_len
from rich.text import Text

from simpo_cli.audit.columns import histogram
from simpo_cli.audit.examine import Examination
from simpo_cli.audit.surface import leading
from simpo_cli.data.raw import record_note
from simpo_cli.formatting import (
    FEW_PROMPTS,
    fixed,
    interval_in_words,
    number_cell,
    percent,
    prompts_in_words,
    share_cell,
    thousands,
)
from simpo_cli.report.console import Console, encodable, printable
from simpo_cli.report.findings_view import print_findings, shared_folder
from simpo_cli.report.summary import print_wrapped
from simpo_cli.report.terminal import blocks

LABEL_WIDTH = 19
WIDE = 60
MUCH_PULL = 0.25  # the weight of a pair that is past the target by a reward of 1.1


def print_start(console: Console, start: Mapping[str, Any]) -> None:
    """Print the key `model` of the document.

    Args:
        console: where to.
        start: accuracy, margins, loss and log-probs at step 0, and the suggestion.
    """
    console.print(Text("What could a run learn?", "bold"), soft_wrap=True)
    print_wrapped(console, Text("  "), scored_in_words(start))
    for label, text in start_rows(start):
        print_wrapped(console, Text(f"  {label.ljust(LABEL_WIDTH)}"), text)
        if label == "margin":
            _print_histogram(console, start["margin"]["histogram"], start["objective"]["gamma"])
    console.print()
    for sentence in start_in_words(start):
        print_wrapped(console, Text("  "), sentence)


def start_rows(start: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was measured, each number under its name with its interval and what it is."""
    return [
        ("accuracy", f"{_share(start['accuracy'])}: the chosen response is the likelier one"),
        ("margin", f"{_mean(start['margin'], 2)}: beta × (m(chosen) - m(rejected))"),
        ("past gamma", f"{_share(start['target_reached'])}: such pairs teach little"),
        ("loss", _mean(start["loss"], 3)),
        ("gradient weight", f"{_mean(start['gradient_weight'], 2)}: 1 pulls fully, 0 has nothing left to pull"),
        ("chosen", f"{_mean(start['logps/chosen'], 3)} nats a token"),
        (
            "rejected",
            f"{_mean(start['logps/rejected'], 3)} nats a token; the nearer to 0, the more the responses are what this "
            "model would write itself",
        ),
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
    """Whether a run can learn from these pairs, and which gamma/beta to begin with, with the reasons."""
    weight, suggestion, objective = start["gradient_weight"]["value"], start["suggestion"], start["objective"]
    ratio, gamma = suggestion["gamma_beta_ratio"], suggestion["gamma"]
    below = _share(suggestion["below_target"])
    room = f"A pair pulls with {fixed(weight, 2)} of its full weight on average"
    if start["accuracy"]["ci"][1] < 0.5:
        room += ", and the model prefers the rejected response in most pairs: see first that the labels are right."
    elif weight >= MUCH_PULL:
        room += ": there is something to learn."
    else:
        room += ": most of what these pairs teach is known to this model already."
    advice = (
        f"gamma/beta {ratio:g} (gamma {gamma:g} at beta {objective['beta']:g}) is where to begin: {below} of the pairs"
    )
    if suggestion["wanted_ratio"] > ratio + 0.03:
        reason = "start below it. It is the most of the authors' set-ups; the histogram alone would give more."
    elif suggestion["wanted_ratio"] < ratio - 0.03:
        reason = "start below it. It is the least of the authors' set-ups; the histogram alone would give less."
    else:
        reason = "start below it and pull, the rest is past it."
    return [
        room,
        f"{advice} {reason}",
        "That is a rule of thumb from the histogram, no experiment: the authors found theirs (0.1 to 0.8) by search.",
    ]


def _print_histogram(console: Console, histogram: Mapping[str, Any], gamma: float) -> None:
    """The margins of the pairs as a figure one line high, with the places of 0 and gamma under it."""
    counts, edges = histogram["hist"], histogram["bin_edges"]
    low, high = f"{edges[0]:+.1f}", f"{edges[-1]:+.1f}"
    indent = " " * (2 + LABEL_WIDTH if console.width >= WIDE else 2)
    figure = encodable(blocks(counts), console.encoding)
    width = (edges[-1] - edges[0]) / len(counts) or 1.0
    at_gamma = min(len(counts) - 1, int((gamma - edges[0]) / width))
    console.print(Text.assemble(indent, (low, "dim"), " ", (figure, "cyan"), " ", (high, "dim")), soft_wrap=True)
    marks = " " * (len(indent) + len(low) + 1)
    if at_gamma == len(counts) // 2:
        under = " " * at_gamma + "^ 0 and gamma"
    else:
        under = " " * (len(counts) // 2) + "^0".ljust(at_gamma - len(counts) // 2) + "^gamma"
    console.print(Text(marks + under, "dim"), soft_wrap=True)


def _share(measured: Mapping[str, Any]) -> str:
    cell = share_cell(measured)
    return f"{cell.text} ({interval_in_words(cell)}, n = {thousands(measured['n'])})"


def _mean(measured: Mapping[str, Any], digits: int) -> str:
    cell = number_cell(measured, digits)
    return f"{cell.text} ({interval_in_words(cell)})"


GAP = 3
SHOWN_PARTS = 10
SHOWN_FEATURES = 4
TOLD_SHARE = 0.01  # of letters in scripts without spaces
RULE_WIDTH = len("surface features only")

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


def print_stats(console: Console, document: Mapping[str, Any], examination: Examination) -> None:
    """Print the document as a table, figures and findings.

    Args:
        console: where to.
        document: what `simpo stats --json` prints.
        examination: the lengths themselves, for the figures.
    """
    _print_heading(console, document, examination.reader.examples)
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
    if len(document["sources"]) > 1:
        folder = shared_folder([str(source["path"]) for source in document["sources"]])
        paths = [str(source["path"]).removeprefix(folder) for source in document["sources"]]
        _print_parts(console, "By file", paths, document["sources"])
        console.print()
    if document["groups"] is not None:
        values = document["groups"]["values"]
        title = f"By {printable(document['groups']['field'])}"
        _print_parts(console, title, [str(value["value"]) for value in values], values)
        console.print()
    print_findings(console, document, examination.refused.first)


def _print_heading(console: Console, document: Mapping[str, Any], examples: Sequence[str]) -> None:
    source = document["input"]
    files = [str(file["path"]) for file in source["files"]]
    named = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    print_wrapped(console, Text(), named, style="bold")
    print_wrapped(console, Text(), source["decision"])
    for said in (*source["remarks"], *examples):
        print_wrapped(console, Text("  "), said)
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


def unit_in_words(document: Mapping[str, Any]) -> str:
    """What lengths are counted in: `words`, or `tokens of MODEL, cut at 2,048 (prompts at 1,800)`."""
    tokens, share = document["input"]["tokens"], document["input"]["unspaced_share"]
    if tokens is None:
        told = f" ({percent(share)} of the responses' letters are of scripts without spaces)"
        return str(document["unit"]) + (told if share >= TOLD_SHARE else "")
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


# What tells the label without being the better answer


def _print_bias(console: Console, document: Mapping[str, Any]) -> None:
    bias = document["bias"]
    console.print(Text("Could a model win by length alone?", "bold"), soft_wrap=True)
    ties = f", {thousands(bias['ties'])} of equal length count one half" if bias["ties"] else ""
    _print_rule(console, "the longer wins", bias, ties)
    surface = bias["surface"]
    if surface is not None:
        _print_rule(console, "surface features only", surface, f", {surface['folds']}-fold by prompt")
        print_wrapped(console, Text("  "), bar_to_beat(surface))
        if leads := leading(surface["weights"], most=SHOWN_FEATURES):
            said = ", ".join(f"{name} {weight:+z.2f}" for name, weight in leads)
            print_wrapped(console, Text("  "), f"It goes by: {said} (logistic weights)", style="dim")
    prompts, effective = (document["input"][name] for name in ("prompts", "effective_prompts"))
    if effective < FEW_PROMPTS:
        few = f"Under {FEW_PROMPTS} prompts" if prompts < FEW_PROMPTS else prompts_in_words(prompts, effective)
        print_wrapped(console, Text("  "), f"{few}: too few to conclude much.", style="dim")


def bar_to_beat(surface: Mapping[str, Any]) -> str:
    """What the surface-only classifier means for a trained model."""
    low, _ = surface["ci"]
    if low is not None and low > 0.5:
        return f"A trained model has to beat {percent(surface['value'])}, not 50 %."
    return "As far as these pairs can tell, the surface is no better than a coin: 50 % is to be beaten."


def _print_rule(console: Console, name: str, measured: Mapping[str, Any], remark: str) -> None:
    cell = share_cell(measured)
    text = f"{cell.text} ({interval_in_words(cell)}; n = {thousands(measured['n'])} pairs{remark})"
    print_wrapped(console, Text(f"  {name.ljust(RULE_WIDTH)}   "), text)


# Files and groups


def _print_parts(console: Console, title: str, names: Sequence[str], parts: Sequence[Mapping[str, Any]]) -> None:
    """What each part of the pairs gives; narrow terminals get two lines a part."""
    heading = ("pairs", "chosen", "rejected", "longer wins", "findings")
    shown = [encodable(printable(name), console.encoding) for name in names[:SHOWN_PARTS]]
    rows = [_part_cells(part) for part in parts[:SHOWN_PARTS]]
    widths = [max(len(head), *(len(row[i]) for row in rows)) for i, head in enumerate(heading)]
    numbers = [
        "".join(" " * GAP + cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in (heading, *rows)
    ]
    name_width = max(map(cell_len, (title, *shown)))
    fits = name_width + len(numbers[0]) <= console.width
    first = Text.assemble((title, "bold"), " " * (name_width - cell_len(title)), (numbers[0], "dim"))
    console.print(first if fits else Text(title, "bold"), soft_wrap=True)
    for name, row, line in zip(shown, rows, numbers[1:], strict=True):
        if fits:
            console.print(Text.assemble(name, " " * (name_width - cell_len(name)), (line, "bold")), soft_wrap=True)
        else:
            print_wrapped(console, Text("  "), name)
            said = ", ".join(f"{head} {cell}" for head, cell in zip(heading, row, strict=True))
            print_wrapped(console, Text("    "), said, style="dim")
    if len(parts) > SHOWN_PARTS:
        print_wrapped(console, Text("  "), f"and {len(parts) - SHOWN_PARTS} more: see --json", style="dim")


def _part_cells(part: Mapping[str, Any]) -> tuple[str, ...]:
    if not part["count"]:
        return ("0", "-", "-", "-", "-")
    return (
        thousands(part["count"]),
        f"{part['mean_chosen_len']:,.1f}",
        f"{part['mean_rejected_len']:,.1f}",
        str(share_cell(part["longer_wins"])),
        thousands(sum(part["findings"].values())),
    )
