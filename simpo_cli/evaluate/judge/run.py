"""`simpo eval --judge`: both orders of every pair of answers before a judge, every reply kept as it comes, and what its
verdicts say.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from simpo_cli import statistics
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.generate.decoding import Answer
from simpo_cli.evaluate.generate.folder import AnswerFolder, add_rows, read_rows
from simpo_cli.evaluate.generate.prompts import Question
from simpo_cli.evaluate.judge.client import INSTRUCTIONS, Judge, question_about, read_reply
from simpo_cli.evaluate.judge.win_rate import length_controlled, win_rate

Order = Literal["base first", "trained first"]
ORDERS: tuple[Order, ...] = ("base first", "trained first")
Winner = Literal["base", "trained", "tie"]
Outcome = Literal["verdict", "unreadable", "refused", "timed out", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("verdict", "unreadable", "refused", "timed out", "failed")

ASKED_AGAIN: tuple[Outcome, ...] = ("timed out", "failed")
"""What a second call asks again: the judge gave no reply."""

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
        """The record of a judge in a folder of answers, new or resumed.

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


AT_ONCE = 8
"""Questions that wait for their reply together."""

Progress = Callable[[int, int], None]
"""Called after every batch: replies so far, replies wanted."""


def judge_answers(path: Path, judge: Judge, progress: Progress) -> None:
    """Have the greedy answers of a folder judged, each pair in both orders; replies are kept as they come.

    Pairs of equal texts are ties and are not asked. A second call asks what is still open: what timed out or failed,
    and what was not reached.

    Raises:
        UserError: the judge cannot be reached, or none of a whole batch of questions got a verdict.
    """
    folder = AnswerFolder.open(path)
    base, trained = folder.in_order("base", "greedy"), folder.in_order("trained", "greedy")
    record = JudgeRecord.make(path, judge, base, trained)
    done = {place for place, one in record.judgements().items() if one.outcome not in ASKED_AGAIN}
    open_ones = [one for one in _questions(folder.questions, base, trained) if (one[0].key, one[3]) not in done]
    wanted = len(done) + len(open_ones)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for start in range(0, len(open_ones), AT_ONCE):
            judgements = list(pool.map(lambda one: _judged(judge, *one), open_ones[start : start + AT_ONCE]))
            record.add(judgements)
            done |= {(one.key, one.order) for one in judgements}
            progress(len(done), wanted)
            _require_some_verdict(judgements, record, len(done), wanted)


def _questions(
    questions: Sequence[Question], base: Sequence[Answer], trained: Sequence[Answer]
) -> Iterator[tuple[Question, Answer, Answer, Order]]:
    for (question, one, other), order in product(zip(questions, base, trained, strict=True), ORDERS):
        if one.text != other.text:
            yield question, one, other, order


def _judged(judge: Judge, question: Question, base: Answer, trained: Answer, order: Order) -> Judgement:
    a, b = (base, trained) if order == "base first" else (trained, base)
    reply = judge.ask(question_about(question.text, a.text, b.text))
    if reply.status != "replied":
        return Judgement(question.key, order, reply.status, None, reply.text)
    reading = read_reply(reply.text)
    if reading == "refused" or reading == "unreadable":
        return Judgement(question.key, order, reading, None, reply.text)
    sides: dict[str, Winner] = {"A": "base", "B": "trained", "tie": "tie"}
    if order == "trained first":
        sides |= {"A": "trained", "B": "base"}
    return Judgement(question.key, order, "verdict", sides[reading], reply.text)


_FAILURES = {
    "timed out": ("did not reply in time", "Ask again later; the judge may be overloaded."),
    "failed": ("did not reply", "Look at the judge's own log."),
    "refused": ("refused to judge", "Name another model with --judge-model."),
    "unreadable": ("gave no verdict that can be read", "Name a model that follows instructions with --judge-model."),
}


def _require_some_verdict(judgements: Sequence[Judgement], record: JudgeRecord, done: int, wanted: int) -> None:
    """Stop where a whole batch came to nothing: the rest would too, and may cost money.

    Raises:
        UserError: says what happened, shows one reply, and how to resume.
    """
    if any(one.outcome == "verdict" for one in judgements):
        return
    outcome, count = Counter(one.outcome for one in judgements).most_common(1)[0]
    what, fix = _FAILURES[outcome]
    reply = next(one.reply for one in judgements if one.outcome == outcome)
    example = f": {' '.join(reply.split())[:120]!r}" if reply.strip() else ""
    raise UserError(
        f"the judge {record.heading['judge']} {what}, {count} times of {len(judgements)}{example}.",
        f"{fix} {done:,} of {wanted:,} replies are kept in {record.file}; the same command resumes there.",
        where=str(record.heading["url"]),
        exit_code=ExitCode.ENVIRONMENT,
    )


def judge_document(path: Path) -> list[dict[str, Any]]:
    """What each judge of a folder's answers has said so far; complete or not is said in `prompts`.

    Raises:
        UserError: a file is damaged.
    """
    folder = AnswerFolder.open(path)
    records = JudgeRecord.all_in(path)
    if not records:
        return []
    base, trained = folder.in_order("base", "greedy"), folder.in_order("trained", "greedy")
    return [_document(record, base, trained) for record in records]


def _document(record: JudgeRecord, base: Sequence[Answer], trained: Sequence[Answer]) -> dict[str, Any]:
    judgements = record.judgements()
    scores: list[float] = []
    longer: list[float] = []
    prompts: list[str] = []
    consistent: list[float] = []
    first_won: list[float] = []
    equal = 0
    for one, other in zip(base, trained, strict=True):
        winners: list[Winner | None] = ["tie", "tie"]
        if one.text == other.text:
            equal += 1
        else:
            found = [judgements.get((one.key, order)) for order in ORDERS]
            winners = [None if reply is None else reply.winner for reply in found]
            if None in winners:
                continue  # one order alone would count the judge's liking for a place
            consistent.append(float(winners[0] == winners[1]))
            first_won += [
                float(winner == order.split()[0])
                for winner, order in zip(winners, ORDERS, strict=True)
                if winner != "tie"
            ]
        scores += [_SCORES[winner] for winner in winners if winner is not None]
        longer += [float(len(other.text) - len(one.text))] * 2
        prompts += [one.key] * 2
    controlled = length_controlled(scores, longer, prompts) if prompts else None
    outcomes = Counter(one.outcome for one in judgements.values())
    return {
        "judge": record.heading["judge"],
        "url": record.heading["url"],
        "file": str(record.file),
        "prompts": {"all": len(base), "judged": len(prompts) // 2, "equal_answers": equal},
        "replies": {name.replace(" ", "_"): outcomes[name] for name in OUTCOMES},
        "win_rate": win_rate(scores, prompts).as_json() if prompts else None,
        "length_controlled": controlled and controlled.win_rate.as_json(),
        "length_effect": controlled and controlled.length_effect.as_json(),
        "position_consistency": statistics.proportion(consistent).as_json() if consistent else None,
        "first_shown_wins": sum(first_won) / len(first_won) if first_won else None,
        "verdicts": {winner: scores.count(score) for winner, score in _SCORES.items()},
    }


_SCORES: dict[Winner, float] = {"trained": 1.0, "tie": 0.5, "base": 0.0}
