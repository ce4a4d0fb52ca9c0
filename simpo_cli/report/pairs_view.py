"""What `simpo pairs` found, for a person: scores, what became of each prompt, and rounds; the page draws them too."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from simpo_cli.audit.examine import Examination
from simpo_cli.formatting import (
    Cell,
    change_cell,
    fixed,
    interval_in_words,
    number_cell,
    percent,
    points_cell,
    share_cell,
    thousands,
)
from simpo_cli.report.console import Console, print_table, print_wrapped
from simpo_cli.report.stats_view import print_stats
from simpo_cli.table import MEASURED, Remark, Row, Table, measured_row


def print_scores(console: Console, document: Mapping[str, Any]) -> None:
    """Who scored, and what the scores say."""
    print_table(console, scores_table(document), styles=("bold", "dim", "dim"), right=True)


def scores_table(document: Mapping[str, Any]) -> Table:
    """Mean score and how many answers ended, with intervals by prompt."""
    rows = [
        measured_row("mean score", lambda one: number_cell(one, 3), document["score"], 0),
        measured_row("answers that ended", share_cell, document["ended"]),
    ]
    remarks = []
    if document["lowest"] is not None:
        remarks.append(Remark("range", f"scores from {document['lowest']:.4g} to {document['highest']:.4g}"))
    if document["without_score"]:
        remarks.append(Remark("without", f"without a score: {_counts(document['without_score'])}"))
    same, prompts = document["prompts_of_one_score"], document["prompts"]
    if document["answers"] > prompts:
        remarks.append(Remark("equal", f"{same:,} of {prompts:,} prompts have answers of one score: no pair there"))
    return Table(MEASURED, rows, title=_named(document["scorer"]), remarks=remarks)


def _named(scorer: Mapping[str, Any]) -> str:
    kind = str(scorer["kind"])
    return f"{kind.replace('_', ' ')} {scorer.get('model') or scorer[kind]}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


def print_made(console: Console, document: Mapping[str, Any], examination: Examination) -> None:
    """What became of every prompt, then the audit of the pairs."""
    print_table(console, ledger_table(document), styles=("bold",), right=True)
    console.print()
    print_stats(console, document["audit"], examination)


def ledger_table(document: Mapping[str, Any]) -> Table:
    """Prompts are pairs and those left out, by reason; how often the chosen answer is the longer one."""
    rows = [Row("prompts", (Cell(thousands(document["prompts"])),))]
    rows += [Row(f"  {reason}", (Cell(thousands(count)),)) for reason, count in document["without_pair"].items()]
    rows.append(Row("pairs", (Cell(thousands(document["pairs"])),)))
    sides = ", ".join(f"{side} in {count:,}" for side, count in document["chosen_longer"].items())
    remarks = [Remark("length", f"chosen, in tokens: {sides}")]
    if document.get("scorer") is not None and document["making"]["min_score"] is None:
        remarks.append(Remark("bar", "no bar: of two bad answers the less bad one is chosen (--min-score)"))
    return Table(("",), rows, title=str(document["file"]), remarks=remarks)


def print_rounds(console: Console, document: Mapping[str, Any]) -> None:
    """The rounds below one another, and why they ended."""
    for table in rounds_tables(document):
        print_table(console, table, styles=("",) * len(table.columns), right=True)
        console.print()
    for line in conclusions(document):
        print_wrapped(console, Text(), line)


def names_of(document: Mapping[str, Any]) -> dict[str, str]:
    """What the numbers of a round are called; the built-in world's own check has names of its own."""
    is_world = "builtin:guide" in document["scoring"]
    return {
        "passed": "wholly right" if is_world else "reach the bar",
        "score": "right parts" if is_world else "mean score",
        "ended": "end",
        "repeated": "repetition",
    }


def rounds_tables(document: Mapping[str, Any]) -> list[Table]:
    """Answers to held-out prompts by round, and beside them what the runs measured on held-out pairs."""
    rounds: Sequence[Mapping[str, Any]] = document["rounds"]
    if not rounds:
        return []
    names = {key: name for key, name in names_of(document).items() if key in rounds[0]["held_out"]}
    rows = []
    for one in rounds:
        cells = [Cell("" if one["pairs"] is None else thousands(one["pairs"]["pairs"]))]
        for place, key in enumerate(names):
            measured = one["held_out"][key]
            cell = Cell("none") if measured is None else _shown(key, measured)
            cells += [Cell(cell.text)] if place else [Cell(cell.text), Cell(cell.below)]
        rows.append(Row(_label(one), tuple(cells)))
    first, *others = names.values()
    n = document["held_out_prompts"]
    answers = Table(
        ("pairs", first, "95 % interval", *others),
        rows,
        title="answers",
        remarks=[Remark("n", f"greedy answers to {n:,} held-out prompts, scored as the training answers were")],
    )
    rows = [
        Row(
            _label(one),
            (
                share_cell(one["on_pairs"]["accuracy"]),
                Cell("too few") if one["on_pairs"]["balanced"] is None else share_cell(one["on_pairs"]["balanced"]),
                Cell(fixed(one["on_pairs"]["gap"], 3)),
            ),
        )
        for one in rounds
        if one["on_pairs"] is not None
    ]
    if not rows:
        return [answers]
    remark = "On held-out pairs a model may get better while its answers get worse: judge rounds by the answers."
    pairs = Table(
        ("accuracy", "length-balanced", "gap, nats/token"), rows, title="pairs", remarks=[Remark("pairs", remark)]
    )
    return [answers, pairs]


def _label(one: Mapping[str, Any]) -> str:
    return f"round {one['round']}" if one["round"] else "start"


def _shown(key: str, measured: Mapping[str, Any]) -> Cell:
    if key == "score":
        return number_cell(measured, 3)
    if key == "repeated":
        return Cell(percent(measured["value"]))
    return share_cell(measured)


def conclusions(document: Mapping[str, Any]) -> list[str]:
    """In words: the best round beside the start, by prompt, and what has stopped the rounds."""
    rounds = document["rounds"]
    if not rounds:
        return []
    best, lines = rounds[document["best"]], []
    if best["round"] == 0:
        lines.append("no round is better than the start model")
    else:
        key = "passed" if "passed" in best["change"]["start"] else "score"
        change = best["change"]["start"][key]
        cell = points_cell(change) if key == "passed" else change_cell(change, 3)
        gain = f"{cell.text}{' points' if key == 'passed' else ''}"
        lines.append(
            f"best is round {best['round']}: {names_of(document)[key]} {gain} against the start model "
            f"({interval_in_words(cell)}, by prompt, n = {change['n']:,}; one seed, and the best of "
            f"{len(rounds) - 1} on these prompts)"
        )
        lines.append(f"model   {best['model']}")
    if document["stopped"] is not None:
        lines.append(f"stopped in round {document['stopped']['round']}: {document['stopped']['reason']}")
    return lines
