"""What a run's page tabulates: before and after, accuracy by length, where every record went, held-out pairs to read,
and what `simpo eval --generate` has put into the run's folder.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpo_cli.errors import UserError
from simpo_cli.evaluate.generate.document import answers_document
from simpo_cli.evaluate.generate.folder import MANIFEST, AnswerFolder, is_answers
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
from simpo_cli.report.answers_view import (
    AnswerRow,
    answer_remarks,
    how_answered,
    judge_remarks,
    judge_rows,
    measure_rows,
    mode_in_words,
    people_remark,
    people_row,
)
from simpo_cli.report.page import readable
from simpo_cli.report.run_files import Row, RunFiles
from simpo_cli.statistics import MIN_STRATUM_PAIRS, mean, proportion


@dataclass(frozen=True, slots=True)
class Sample:
    """One pair: its place, its margin before and after, and its texts under their names."""

    where: str
    margin: str
    texts: Sequence[tuple[str, str]]


def pair_samples(run: RunFiles) -> dict[str, list[Sample]]:
    """The run's samples by why they were taken: `drawn` by the seed, `worst` for the margins that fell most."""
    samples: dict[str, list[Sample]] = {"drawn": [], "worst": []}
    for row in run.samples:
        if row["why"] in samples and row["line"] <= len(run.pairs):
            samples[row["why"]].append(_sample(row, run.pairs[row["line"] - 1]))
    return samples


def _sample(row: Row, pair: Row) -> Sample:
    before, after = (pair[f"chosen_{when}"] - pair[f"rejected_{when}"] for when in ("before", "after"))
    return Sample(
        where=pair["where"],
        margin=f"{fixed(before, 3)} before, {fixed(after, 3)} after",
        texts=[(name, readable(row[name])) for name in ("prompt", "chosen", "rejected")],
    )


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


SHOWN_PROMPTS = 4


@dataclass(frozen=True, slots=True)
class Preferences:
    """How often a judge, or people, preferred the trained model."""

    title: str
    rows: Sequence[tuple[str, Cell]]
    remarks: Sequence[str]


@dataclass(frozen=True, slots=True)
class AnswersPanel:
    """One folder of answers.

    Attributes:
        folder: its name in the run's folder.
        problem: why its answers cannot be shown, and what to do; then nothing else is known.
        how: prompts, limits and engine.
        models: paths of the two models, by side.
        modes: title and table of greedy and of sampled answers.
        preferences: of every judge, and of people.
        answers: (prompt, of the base model, of the trained model), drawn by the seed.
        remarks: what to know beside the numbers.
    """

    folder: str
    problem: str = ""
    how: str = ""
    models: Mapping[str, str] = field(default_factory=dict)
    modes: Sequence[tuple[str, Sequence[AnswerRow]]] = ()
    preferences: Sequence[Preferences] = ()
    answers: Sequence[tuple[str, str, str]] = ()
    remarks: Sequence[str] = ()


def answer_panels(run: RunFiles) -> list[AnswersPanel]:
    """A panel for every folder of answers in the folder of a run, by name; those that are not whole say so."""
    return [_panel(folder, run) for folder in sorted(run.path.iterdir()) if is_answers(folder)]


def _panel(path: Path, run: RunFiles) -> AnswersPanel:
    try:
        document, folder = answers_document(path), AnswerFolder.open(path)
        answers = _drawn(folder)
    except UserError as error:
        return AnswersPanel(path.name, problem=" ".join(str(error).split()))
    manifest = document["manifest"]
    preferences = [
        Preferences(f"judged by {judge['judge']}", judge_rows(judge), judge_remarks(judge))
        for judge in document["judges"]
    ]
    if people := document["people"]:
        preferences.append(Preferences("judged by people", [people_row(people)], [people_remark(people)]))
    return AnswersPanel(
        folder=path.name,
        how=how_answered(manifest),
        models={side: model["path"] for side, model in manifest["models"].items()},
        modes=[
            (mode_in_words(mode, manifest["decoding"]), measure_rows(measures))
            for mode, measures in document["measures"].items()
        ],
        preferences=preferences,
        answers=answers,
        remarks=[*_outdated(path, run), *answer_remarks(document)],
    )


def _drawn(folder: AnswerFolder) -> list[tuple[str, str, str]]:
    """A few prompts with their greedy answers, the same ones for the same seed."""
    both = zip(folder.questions, folder.in_order("base", "greedy"), folder.in_order("trained", "greedy"), strict=True)
    seed = folder.manifest["decoding"]["seed"]
    drawn = sorted(both, key=lambda one: hashlib.sha256(f"shown {seed} {one[0].key}".encode()).digest())
    return [
        (readable(question.text), readable(base.text), readable(trained.text))
        for question, base, trained in drawn[:SHOWN_PROMPTS]
    ]


def _outdated(path: Path, run: RunFiles) -> list[str]:
    """A word of warning where the run was gone on with after its model had answered."""
    resumed = run.receipt.get("resumed")
    made = datetime.fromtimestamp((path / MANIFEST).stat().st_mtime, UTC)
    if not resumed or datetime.fromisoformat(resumed[-1]["at"]) <= made:
        return []
    return [f"The run was gone on with after these answers were made: move {path} away and have them made anew."]
