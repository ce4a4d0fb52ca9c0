"""Every reply of a judge, kept as it comes, so that a second call goes on where the first stopped."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from simpo_cli.errors import UserError
from simpo_cli.evaluate.generation.measures import Answer
from simpo_cli.evaluate.json_lines import add_rows, read_rows
from simpo_cli.evaluate.judge.client import Judge
from simpo_cli.evaluate.judge.question import INSTRUCTIONS

Order = Literal["base first", "trained first"]
ORDERS: tuple[Order, ...] = ("base first", "trained first")
Winner = Literal["base", "trained", "tie"]
Outcome = Literal["verdict", "unreadable", "refused", "timed out", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("verdict", "unreadable", "refused", "timed out", "failed")

ASKED_AGAIN: tuple[Outcome, ...] = ("timed out", "failed")
"""What a second call asks again: the judge did not get to say anything."""

_PREFIX = "judge."


@dataclass(frozen=True, slots=True)
class Judgement:
    """One reply: which prompt, which answer was shown first, what became of it, who won, and the reply itself."""

    key: str
    order: Order
    outcome: Outcome
    winner: Winner | None
    reply: str


@dataclass(frozen=True)
class JudgeRecord:
    """The file of one judge's replies on one folder's answers.

    Attributes:
        file: JSON lines; the first is the heading, which says what was judged by whom.
        heading: as it is in the file.
    """

    file: Path
    heading: dict[str, Any]

    @classmethod
    def make(cls, folder: Path, judge: Judge, base: Sequence[Answer], trained: Sequence[Answer]) -> "JudgeRecord":
        """The record of a judge in a folder of answers, new or to be gone on with.

        Raises:
            UserError: the file is of other answers, or of another endpoint.
        """
        heading = {
            "schema_version": 1,
            "judge": judge.model,
            "url": judge.url,
            "instructions_sha256": hashlib.sha256(INSTRUCTIONS.encode()).hexdigest(),
            "answers_sha256": _digest(base, trained),
        }
        name = "".join(char if char.isalnum() or char in "._-" else "-" for char in judge.model)
        record = cls(folder / f"{_PREFIX}{name}.jsonl", heading)
        rows = read_rows(record.file)
        if not rows:
            add_rows(record.file, [heading])
        elif rows[0] != heading:
            differing = [key for key in heading if rows[0].get(key) != heading[key]]
            raise UserError(
                f"holds verdicts of something else: {', '.join(differing)} differ.",
                "Move the file away to have everything judged again.",
                where=str(record.file),
            )
        return record

    @classmethod
    def all_in(cls, folder: Path) -> list["JudgeRecord"]:
        """The records that a folder of answers has."""
        files = sorted(folder.glob(f"{_PREFIX}*.jsonl"))
        return [cls(file, rows[0]) for file in files if (rows := read_rows(file))]

    def judgements(self) -> dict[tuple[str, Order], Judgement]:
        """The last reply on each prompt in each order."""
        found: dict[tuple[str, Order], Judgement] = {}
        for row in read_rows(self.file)[1:]:
            try:
                one = Judgement(row["key"], row["order"], row["outcome"], row["winner"], row["reply"])
            except KeyError as error:
                raise UserError(f"a row lacks {error}.", "Move the file away.", where=str(self.file)) from error
            found[one.key, one.order] = one
        return found

    def add(self, judgements: Sequence[Judgement]) -> None:
        """Keep replies as they come."""
        add_rows(self.file, [{name: getattr(one, name) for name in Judgement.__slots__} for one in judgements])


def _digest(base: Sequence[Answer], trained: Sequence[Answer]) -> str:
    texts = [[one.key, one.text, other.text] for one, other in zip(base, trained, strict=True)]
    return hashlib.sha256(json.dumps(texts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
