"""A folder of answers as `simpo eval --generate` leaves it, made up: forty prompts, longer answers after training."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simpo_cli.evaluate.generate.blind import SHEET, write_blind
from simpo_cli.evaluate.generate.folder import MODES, SIDES, Answer, AnswerFolder
from tests.evaluate.generate.questions import random_questions

QUESTIONS = random_questions(40, seed=1)
MANIFEST: dict[str, Any] = {
    "schema_version": 1,
    "kind": "answers",
    "models": {"base": {"name": "smol", "path": "org/smol"}, "trained": {"name": "mine", "path": "runs/mine/model"}},
    "engine": "transformers",
    "engine_version": "5.0",
    "decoding": {"max_new_tokens": 64, "temperature": 0.7, "seed": 42},
    "prompts": {"from": "held.jsonl", "count": 40, "left_out": {"asked already": 3}},
}


def write_answers(path: Path, *, said: str = "{side} {last}", **manifest: Any) -> AnswerFolder:
    """Write the folder: of the trained model's answers two do not end.

    Args:
        path: where.
        said: the text of an answer, of its side and its last token.
        manifest: what is other than in `MANIFEST`.
    """
    made = AnswerFolder.make(path, {**MANIFEST, **manifest}, QUESTIONS)
    for side in SIDES:
        extra = 8 if side == "trained" else 0
        for mode in MODES:
            answers = []
            for i, question in enumerate(QUESTIONS):
                ids = tuple(range(i, i + 12 + i % 5 + extra))
                text = said.replace("{side}", side).replace("{last}", str(ids[-1]))
                answers.append(Answer(question.key, text, ids, not extra or i > 1))
            made.add(side, mode, answers)
    base, trained = (made.in_order(side, "greedy") for side in SIDES)
    write_blind(made.path, QUESTIONS, base, trained, seed=1)
    return made


def write_verdicts(folder: AnswerFolder, judge: str, wins: int) -> None:
    """What a judge said: of the first prompts the trained model wins in both orders, of all others the base model."""
    rows: list[dict[str, Any]] = [{"judge": judge, "url": "http://localhost:1/v1"}]
    for number, question in enumerate(QUESTIONS):
        for order in ("base first", "trained first"):
            winner = "trained" if number < wins else "base"
            rows.append({"key": question.key, "order": order, "outcome": "verdict", "winner": winner, "reply": "So."})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder.path / f"judge.{judge}.jsonl").write_text(text, encoding="utf-8")


def fill_in(folder: Path, verdict: Callable[[list[str]], str], most: int | None = None) -> None:
    """Write a person's verdicts into the blind sheet; each row holds number, verdict, prompt, A, B."""
    rows = list(csv.reader(io.StringIO((folder / SHEET).read_text(encoding="utf-8-sig"), newline="")))
    for row in rows[1:][:most]:
        row[1] = verdict(row)
    filled = io.StringIO()
    csv.writer(filled).writerows(rows)
    (folder / SHEET).write_text(filled.getvalue(), encoding="utf-8", newline="")


def likes_trained(row: list[str]) -> str:
    """The verdict of a person who always prefers the trained model."""
    return "A" if row[3].startswith("trained") else "B"
