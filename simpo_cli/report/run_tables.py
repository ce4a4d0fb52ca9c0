"""What a run's page tabulates: accuracy by length, drift, where every record went, held-out pairs to read, and what
`simpo eval --generate` has put into the run's folder.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpo_cli.errors import UserError
from simpo_cli.evaluate.generate.folder import MANIFEST, AnswerFolder, is_answers
from simpo_cli.evaluate.generate.measures import answers_document
from simpo_cli.formatting import LOG_PROB_DIGITS, Cell, Measured, change_cell, fixed, share_cell, thousands
from simpo_cli.report.answers_view import answer_remarks, how_answered, measure_tables, preference_tables
from simpo_cli.report.run_files import RunFiles
from simpo_cli.statistics import MIN_STRATUM_PAIRS, mean, proportion
from simpo_cli.table import Row, Table

SHOWN_PROMPTS = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """One pair to read: its place, its margin before and after, and its texts under their names."""

    where: str
    margin: str
    texts: Sequence[tuple[str, str]]


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


@dataclass(frozen=True, slots=True)
class AnswersPanel:
    """One folder of answers.

    Attributes:
        folder: its name in the run's folder.
        problem: why its answers cannot be shown, and what to do; then nothing else is known.
        how: prompts, limits and engine.
        models: paths of the two models, by side.
        tables: what was counted, and whom judges and people preferred.
        answers: (prompt, of the base model, of the trained model), drawn by the seed.
        remarks: what to know beside the numbers.
    """

    folder: str
    problem: str = ""
    how: str = ""
    models: Mapping[str, str] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    answers: Sequence[tuple[str, str, str]] = ()
    remarks: Sequence[str] = ()


def pair_samples(run: RunFiles) -> dict[str, list[Sample]]:
    """The run's samples by why they were taken: `drawn` by the seed, `worst` for the margins that fell most."""
    samples: dict[str, list[Sample]] = {"drawn": [], "worst": []}
    for row in run.samples:
        if row["why"] in samples and row["line"] <= len(run.pairs):
            pair = run.pairs[row["line"] - 1]
            before, after = (pair[f"chosen_{when}"] - pair[f"rejected_{when}"] for when in ("before", "after"))
            margin = f"{fixed(before, 3)} before, {fixed(after, 3)} after"
            texts = [(name, row[name]) for name in ("prompt", "chosen", "rejected")]
            samples[row["why"]].append(Sample(pair["where"], margin, texts))
    return samples


def length_rows(run: RunFiles) -> list[LengthRow]:
    """Accuracy where chosen is longer, shorter, as long, and the mean of the first two."""
    if "before" not in run.outcome:
        return []
    labels = {"chosen_longer": "chosen longer", "chosen_shorter": "chosen shorter", "balanced": "balanced"}
    both = [run.outcome[when]["length"] for when in ("before", "after")]
    rows = [LengthRow(label, *(one[key] for one in both)) for key, label in labels.items()]
    if (equal := _equal_lengths(run)) is not None:
        rows.insert(2, LengthRow("equal length", *equal))
    return rows


def length_table(lengths: Sequence[LengthRow]) -> Table:
    """The same as a table."""
    rows = []
    for row in lengths:
        if row.before is None or row.after is None:
            cells = (Cell(f"under {MIN_STRATUM_PAIRS}"), Cell("too few"), Cell("too few"))
        else:
            cells = (Cell(thousands(row.after["n"])), share_cell(row.before), share_cell(row.after))
        rows.append(Row(row.label, cells))
    return Table(("pairs", "before", "after"), rows, title="accuracy where")


def drift_table(run: RunFiles) -> Table:
    """How the log-probs of the held-out pairs changed, with intervals by prompt; no rows where that is not known."""
    prompts = [row["prompt"] for row in run.pairs]
    rows = []
    for side in ("chosen", "rejected") if run.pairs else ():
        change = pair_column(run, f"{side}_after") - pair_column(run, f"{side}_before")
        fell = share_cell(proportion((change < 0).astype(float), prompts).as_json())
        rows.append(Row(f"{side}, nats/token", (change_cell(mean(change, prompts).as_json(), LOG_PROB_DIGITS),)))
        rows.append(Row(f"pairs whose {side} fell", (fell,)))
    return Table((f"{thousands(len(prompts))} held-out pairs",), rows, title="change since the start model")


def recipe_table(run: RunFiles) -> Table:
    """Key, value and origin of what somebody set, in the order of the recipe; no rows for runs that kept no origins."""
    origins = run.receipt.get("recipe_origins", {})
    rows = [
        Row(key, (Cell(shown_value(value)), Cell(origins[key]))) for key, value in run.values.items() if key in origins
    ]
    return Table(("value", "set in"), rows, title="key")


def shown_value(value: Any) -> str:
    """A value as a recipe would hold it."""
    return value if isinstance(value, str) else json.dumps(value)


def pair_column(run: RunFiles, name: str) -> NDArray[np.float64]:
    """(P,) one number of every held-out pair."""
    return np.array([row[name] for row in run.pairs], dtype=np.float64)


def accounts(run: RunFiles) -> list[Account]:
    """Of the training records, and of the evaluation records where they are files of their own."""
    labels = {"trained": "trained", "held_out": "held out", "not_reached": "not reached", "refused": "malformed"}
    found = []
    for side in ("train", "eval"):
        if (source := run.receipt["data"][side]) is None:
            continue
        records = source["records"]
        parts = [(label, records[key]) for key, label in labels.items() if records.get(key)]
        parts += [(f"dropped: {reason}", count) for reason, count in records["dropped"].items()]
        left = [(key, records[key]) for key in ("read", "repeated") if key == "read" or records[key]]
        found.append(Account(side, source["decision"], source["files"], left, parts, source["counts"]))
    return found


def answer_panels(run: RunFiles) -> list[AnswersPanel]:
    """A panel for every folder of answers in the folder of a run, by name; those that are not whole say so."""
    return [_panel(folder, run) for folder in sorted(run.path.iterdir()) if is_answers(folder)]


def _equal_lengths(run: RunFiles) -> tuple[Measured, Measured] | None:
    rows = [row for row in run.pairs if row["chosen_tokens"] == row["rejected_tokens"]]
    if len(rows) < MIN_STRATUM_PAIRS:
        return None
    measured = []
    for when in ("before", "after"):
        gaps = np.sign([row[f"chosen_{when}"] - row[f"rejected_{when}"] for row in rows])
        measured.append(proportion((gaps + 1) / 2, [row["prompt"] for row in rows]).as_json())
    return measured[0], measured[1]


def _panel(path: Path, run: RunFiles) -> AnswersPanel:
    try:
        document, folder = answers_document(path), AnswerFolder.open(path)
        answers = _drawn(folder)
    except UserError as error:
        return AnswersPanel(path.name, problem=" ".join(str(error).split()))
    manifest = document["manifest"]
    return AnswersPanel(
        folder=path.name,
        how=how_answered(manifest),
        models={side: model["path"] for side, model in manifest["models"].items()},
        tables=[*measure_tables(document), *preference_tables(document)],
        answers=answers,
        remarks=[*_outdated(path, run), *answer_remarks(document)],
    )


def _drawn(folder: AnswerFolder) -> list[tuple[str, str, str]]:
    """A few prompts with their greedy answers, the same ones for the same seed."""
    both = zip(folder.questions, folder.in_order("base", "greedy"), folder.in_order("trained", "greedy"), strict=True)
    seed = folder.manifest["decoding"]["seed"]
    drawn = sorted(both, key=lambda one: hashlib.sha256(f"shown {seed} {one[0].key}".encode()).digest())
    return [(question.text, base.text, trained.text) for question, base, trained in drawn[:SHOWN_PROMPTS]]


def _outdated(path: Path, run: RunFiles) -> list[str]:
    """A warning where the run was resumed after its model had answered."""
    resumed = run.receipt.get("resumed")
    made = datetime.fromtimestamp((path / MANIFEST).stat().st_mtime, UTC)
    if not resumed or datetime.fromisoformat(resumed[-1]["at"]) <= made:
        return []
    return [f"The run was resumed after these answers were made: move {path} away and have them made anew."]
