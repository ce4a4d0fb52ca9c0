"""Two models' answers side by side for people to judge, without saying which model wrote what.

`side_by_side.csv` opens in any spreadsheet: a prompt a row, answers A and B in an order drawn from the seed, and a
column `verdict` to fill in with A, B or tie. `side_by_side_key.json` says what A and B were; it is for afterwards.
"""

import csv
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simpo_cli import statistics
from simpo_cli.errors import UserError
from simpo_cli.evaluate.generate.folder import Answer, write_json, write_text
from simpo_cli.evaluate.generate.prompts import Question
from simpo_cli.files import object_in

SHEET = "side_by_side.csv"
KEY = "side_by_side_key.json"

_COLUMNS = ("id", "verdict", "prompt", "answer_a", "answer_b")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # beginnings that a spreadsheet computes instead of showing
_VERDICTS = {"a": "a", "b": "b", "tie": "tie", "t": "tie", "=": "tie", "equal": "tie", "same": "tie"}


def write_blind(
    folder: Path, questions: Sequence[Question], base: Sequence[Answer], trained: Sequence[Answer], seed: int
) -> None:
    """Write the sheet and its key. A prompt that both answer alike is left out: there is nothing to judge.

    A sheet that holds verdicts already stays as it is.

    Raises:
        UserError: a sheet is there that is none of ours.
    """
    if (folder / SHEET).is_file() and any(row["verdict"].strip() for row in _sheet(folder / SHEET)):
        return
    first: dict[str, str] = {}
    sheet = io.StringIO()
    rows = csv.writer(sheet)
    rows.writerow(_COLUMNS)
    for question, one, other in zip(questions, base, trained, strict=True):
        if one.text == other.text:
            continue
        is_base_first = hashlib.sha256(f"side by side {seed} {question.key}".encode()).digest()[0] % 2 == 0
        first[question.key] = "base" if is_base_first else "trained"
        texts = [question.text, one.text, other.text] if is_base_first else [question.text, other.text, one.text]
        rows.writerow([question.key, "", *(f"'{text}" if text.startswith(_FORMULA) else text for text in texts)])
    write_text(folder / SHEET, "\ufeff" + sheet.getvalue())  # by the mark spreadsheets know that it is UTF-8
    write_json(folder / KEY, {"schema_version": 1, "seed": seed, "answer_a": first})


def read_verdicts(folder: Path) -> dict[str, Any] | None:
    """What the filled sheet says; None while no verdict is filled in, or where there is no sheet.

    Returns:
        win_rate of the trained model ({value, ci, n}; a tie counts one half), wins, ties, losses, and open: rows that
        have no verdict yet.

    Raises:
        UserError: the sheet or its key is damaged, or a verdict is none.
    """
    if not (folder / SHEET).is_file():
        return None
    rows = _sheet(folder / SHEET)
    first = _key(folder / KEY)
    scores: list[float] = []
    for number, row in enumerate(rows, start=1):
        verdict = row["verdict"].strip().lower()
        if not verdict:
            continue
        where = f"{folder / SHEET}, row {number}"
        if verdict not in _VERDICTS:
            raise UserError(f"the verdict is {row['verdict'][:40]!r}.", "Write A, B or tie.", where=where)
        if row["id"] not in first:
            raise UserError(f"the id {row['id'][:40]!r} is not in {KEY}.", "Leave ids as they were.", where=where)
        winner = _VERDICTS[verdict]
        scores.append(0.5 if winner == "tie" else float((winner == "a") == (first[row["id"]] == "trained")))
    if not scores:
        return None
    counts = {name: scores.count(score) for name, score in (("wins", 1.0), ("ties", 0.5), ("losses", 0.0))}
    return {"win_rate": statistics.proportion(scores).as_json(), **counts, "open": len(rows) - len(scores)}


def _sheet(file: Path) -> list[dict[str, str]]:
    """The rows of a sheet, as a spreadsheet may have saved it: with another separator, or columns in another order."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        separator = max((",", ";", "\t"), key=text.partition("\n")[0].count)
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot be read as a table: {error}.", "Save it as CSV in UTF-8.", where=str(file)) from error
    if any(row.get(name) is None for row in rows for name in ("id", "verdict")):
        raise UserError("lacks the columns id and verdict.", "Leave the first row as it was.", where=str(file))
    return rows


def _key(file: Path) -> dict[str, str]:
    try:
        first = object_in(file.read_bytes())["answer_a"]
        if not isinstance(first, dict) or not set(first.values()) <= {"base", "trained"}:
            raise ValueError("it does not say which model each answer A is of")
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "Without the key nobody can tell what A and B were; restore it."
        raise UserError(f"cannot be read: {error}.", fix, where=str(file)) from error
    return first
