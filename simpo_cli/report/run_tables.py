"""The tables of a run's page: before and after, accuracy by length, and where every record went."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpo_cli.formatting import (
    LOG_PROB_DIGITS,
    LOSS_DIGITS,
    MARGIN_DIGITS,
    Cell,
    Measured,
    change_cell,
    fixed,
    number_cell,
    percent,
    share_cell,
    thousands,
)
from simpo_cli.report.run_files import RunFiles
from simpo_cli.statistics import MIN_STRATUM_PAIRS, mean, proportion


@dataclass(frozen=True, slots=True)
class TableRow:
    """One line: what it is, before, after."""

    label: str
    before: Cell
    after: Cell


@dataclass(frozen=True, slots=True)
class LengthRow:
    """Accuracy of the pairs of one kind, before and after; None where they are too few."""

    label: str
    before: Measured | None
    after: Measured | None


@dataclass(frozen=True, slots=True)
class Account:
    """Where the records of one side went: what was read, and repeated, is the sum of the parts."""

    side: str
    decision: str
    files: list[Mapping[str, Any]]
    left: list[tuple[str, int]]
    parts: list[tuple[str, int]]
    counts: Mapping[str, int]


_margin = partial(number_cell, digits=MARGIN_DIGITS)
_loss = partial(number_cell, digits=LOSS_DIGITS)
_log_prob = partial(number_cell, digits=LOG_PROB_DIGITS)


def outcome_rows(outcome: Mapping[str, Any]) -> list[TableRow]:
    """What was measured before and after, each with its interval; empty without an evaluation at the end."""
    if "before" not in outcome:
        return []
    before, after = outcome["before"], outcome["after"]
    rows = [
        _row("accuracy", before["accuracy"], after["accuracy"], share_cell),
        _row("length-balanced", before["length"]["balanced"], after["length"]["balanced"], share_cell),
        _row("mean margin", before["margin"], after["margin"], _margin),
        _row("margin past gamma", before["target_reached"], after["target_reached"], share_cell),
        _row("loss", before["loss"], after["loss"], _loss),
        _row("chosen log-prob", before["logps/chosen"], after["logps/chosen"], _log_prob),
        _row("rejected log-prob", before["logps/rejected"], after["logps/rejected"], _log_prob),
    ]
    spearman = [before["length"]["spearman"], after["length"]["spearman"]]
    if None not in spearman:
        rows.append(TableRow("Spearman with length", *(_correlation(rho) for rho in spearman)))
    if before["ties"] or after["ties"]:
        rows.append(TableRow("ties", Cell(thousands(before["ties"])), Cell(thousands(after["ties"]))))
    return rows


def baseline_rows(outcome: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    """Accuracy of rules without a model on the same pairs."""
    known = outcome["after"]["baselines"]
    rows = [("a coin", Cell(percent(0.5)))]
    for key, label in (("longer_wins", "picking the longer response"), ("surface", "a classifier of surface features")):
        if known.get(key) is not None:
            rows.append((label, share_cell(known[key])))
    return rows


def length_rows(run: RunFiles) -> list[LengthRow]:
    """Accuracy where chosen is longer, shorter, as long, and the mean of the first two."""
    if "before" not in run.outcome:
        return []
    before, after = run.outcome["before"]["length"], run.outcome["after"]["length"]
    equal = _equal_lengths(run)
    return [
        LengthRow("chosen longer", before["chosen_longer"], after["chosen_longer"]),
        LengthRow("chosen shorter", before["chosen_shorter"], after["chosen_shorter"]),
        *([] if equal is None else [LengthRow("equal length", *equal)]),
        LengthRow("balanced", before["balanced"], after["balanced"]),
    ]


def length_cells(row: LengthRow) -> tuple[Cell, Cell, Cell]:
    """The row as it is shown: its label with n, before, after."""
    if row.before is None or row.after is None:
        return Cell(row.label, f"under {MIN_STRATUM_PAIRS} pairs"), Cell("too few"), Cell("too few")
    return Cell(row.label, f"n = {thousands(row.after['n'])}"), share_cell(row.before), share_cell(row.after)


def drift_rows(run: RunFiles) -> list[tuple[str, Cell]]:
    """How the log-probs of the held-out pairs changed, with intervals by prompt; empty where that is not known."""
    if not run.pairs:
        return []
    prompts = [row["prompt"] for row in run.pairs]
    rows = []
    for side in ("chosen", "rejected"):
        change = pair_column(run, f"{side}_after") - pair_column(run, f"{side}_before")
        rows += [
            (f"{side}, nats a token", change_cell(mean(change, prompts).as_json(), LOG_PROB_DIGITS)),
            (f"pairs whose {side} fell", share_cell(proportion((change < 0).astype(float), prompts).as_json())),
        ]
    return rows


def recipe_rows(run: RunFiles) -> list[tuple[str, str, str]]:
    """Key, value and origin of what somebody set, in the order of the recipe; empty for runs that kept no origins."""
    origins = run.receipt.get("recipe_origins", {})
    return [(key, shown_value(value), origins[key]) for key, value in run.values.items() if key in origins]


def shown_value(value: Any) -> str:
    """A value as a recipe would hold it."""
    return value if isinstance(value, str) else json.dumps(value)


def pair_column(run: RunFiles, name: str) -> NDArray[np.float64]:
    """(P,) one number of every held-out pair."""
    return np.array([row[name] for row in run.pairs], dtype=np.float64)


def accounts(run: RunFiles) -> list[Account]:
    """Of the training records, and of the evaluation records where they are files of their own."""
    sides = ((side, run.receipt["data"][side]) for side in ("train", "eval"))
    return [_account(side, source) for side, source in sides if source is not None]


def _account(side: str, source: Mapping[str, Any]) -> Account:
    records = source["records"]
    parts = [
        (label, records[key])
        for key, label in (
            ("trained", "trained"),
            ("held_out", "held out"),
            ("not_reached", "not reached"),
            ("refused", "malformed"),
        )
        if records.get(key)
    ]
    parts += [(f"dropped: {reason}", count) for reason, count in records["dropped"].items()]
    left = [("read", records["read"])] + ([("repeated", records["repeated"])] if records["repeated"] else [])
    return Account(side, source["decision"], source["files"], left, parts, source["counts"])


def _equal_lengths(run: RunFiles) -> tuple[Measured, Measured] | None:
    rows = [row for row in run.pairs if row["chosen_tokens"] == row["rejected_tokens"]]
    if len(rows) < MIN_STRATUM_PAIRS:
        return None
    measured = []
    for when in ("before", "after"):
        gaps = np.sign([row[f"chosen_{when}"] - row[f"rejected_{when}"] for row in rows])
        measured.append(proportion((gaps + 1) / 2, [row["prompt"] for row in rows]).as_json())
    return measured[0], measured[1]


def _row(label: str, before: Measured | None, after: Measured | None, show: Any) -> TableRow:
    return TableRow(label, *(Cell("too few pairs") if one is None else show(one) for one in (before, after)))


def _correlation(rho: Measured | float) -> Cell:
    if isinstance(rho, Mapping):
        return number_cell(rho, 2)
    return Cell(fixed(rho, 2))  # runs of earlier versions hold no interval
