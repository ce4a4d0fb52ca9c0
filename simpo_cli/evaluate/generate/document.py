"""What a folder of answers says, as JSON; read without torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simpo_cli.evaluate.generate.blind import KEY, SHEET, read_verdicts
from simpo_cli.evaluate.generate.decoding import MODES
from simpo_cli.evaluate.generate.folder import SCHEMA_VERSION, AnswerFolder
from simpo_cli.evaluate.generate.measures import Answer, measure_answers
from simpo_cli.evaluate.generate.prompts import Question
from simpo_cli.evaluate.judge.run import judge_document

_EXAMPLES = 3


def answers_document(path: Path) -> dict[str, Any]:
    """What a folder of answers says: the measures of each mode, what people have written into the sheet, and
    what judges have said.

    Raises:
        UserError: answers are missing, or a file is damaged.
    """
    folder = AnswerFolder.open(path)
    greedy = (folder.in_order("base", "greedy"), folder.in_order("trained", "greedy"))
    measures = {
        mode: measure_answers(folder.in_order("base", mode), folder.in_order("trained", mode)) for mode in MODES
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "answers",
        "folder": str(path),
        "manifest": dict(folder.manifest),
        "measures": measures,
        "examples": _examples(folder.questions, *greedy),
        "people": read_verdicts(path),
        "judges": judge_document(path),
        "sheet": str(path / SHEET),
        "key": str(path / KEY),
    }


def _examples(questions: Sequence[Question], base: Sequence[Answer], trained: Sequence[Answer]) -> list[dict[str, str]]:
    """The first prompts with both greedy answers, those first to which the answers differ."""
    rows = [
        {
            "prompt": next((turn.content for turn in reversed(question.turns) if turn.role == "user"), ""),
            "base": one.text,
            "trained": other.text,
        }
        for question, one, other in zip(questions, base, trained, strict=True)
    ]
    return sorted(rows, key=lambda row: row["base"] == row["trained"])[:_EXAMPLES]
