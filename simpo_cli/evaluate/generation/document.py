"""What a folder of answers says, as JSON; read without torch."""

from pathlib import Path
from typing import Any

from simpo_cli.evaluate.generation.blind import KEY, SHEET, read_verdicts
from simpo_cli.evaluate.generation.decoding import MODES
from simpo_cli.evaluate.generation.folder import SCHEMA_VERSION, AnswerFolder
from simpo_cli.evaluate.generation.measures import measure_answers
from simpo_cli.evaluate.judge.run import judge_document


def answers_document(path: Path) -> dict[str, Any]:
    """What a folder of answers says: the measures of each mode, what people have written into the sheet, and
    what judges have said.

    Raises:
        UserError: answers are missing, or a file is damaged.
    """
    folder = AnswerFolder.open(path)
    measures = {
        mode: measure_answers(folder.in_order("base", mode), folder.in_order("trained", mode)) for mode in MODES
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "answers",
        "folder": str(path),
        "manifest": dict(folder.manifest),
        "measures": measures,
        "people": read_verdicts(path),
        "judges": judge_document(path),
        "sheet": str(path / SHEET),
        "key": str(path / KEY),
    }
