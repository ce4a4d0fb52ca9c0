"""The panels of a run's page that show what `simpo eval --generate` has put into the run's folder."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from simpo_cli.errors import UserError
from simpo_cli.evaluate.generation.document import answers_document
from simpo_cli.evaluate.generation.folder import MANIFEST, AnswerFolder, is_answers
from simpo_cli.formatting import Cell
from simpo_cli.report.answer_rows import (
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
from simpo_cli.report.run_files import RunFiles

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
