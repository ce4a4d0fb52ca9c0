"""`simpo eval --judge`: both orders of every pair of answers before a judge, and what its verdicts say."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from simpo_cli import statistics
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.generation.folder import AnswerFolder
from simpo_cli.evaluate.generation.measures import Answer
from simpo_cli.evaluate.generation.prompts import Question
from simpo_cli.evaluate.judge.client import Judge, Reply
from simpo_cli.evaluate.judge.question import question_about, read_reply
from simpo_cli.evaluate.judge.record import ASKED_AGAIN, ORDERS, OUTCOMES, Judgement, JudgeRecord, Order, Winner
from simpo_cli.evaluate.judge.win_rate import length_controlled, win_rate

AT_ONCE = 8
"""Questions that wait for their reply together."""

Progress = Callable[[int, int], None]
"""Told after every batch: replies so far, replies wanted."""


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
    asked = [one for one in _asked(folder.questions, base, trained) if (one[0].key, one[3]) not in done]
    wanted = len(done) + len(asked)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for start in range(0, len(asked), AT_ONCE):
            judgements = list(pool.map(lambda one: _judged(judge, *one), asked[start : start + AT_ONCE]))
            record.add(judgements)
            done |= {(one.key, one.order) for one in judgements}
            progress(len(done), wanted)
            _require_some_verdict(judgements, record, len(done), wanted)


def _asked(
    questions: Sequence[Question], base: Sequence[Answer], trained: Sequence[Answer]
) -> Iterator[tuple[Question, Answer, Answer, Order]]:
    for (question, one, other), order in product(zip(questions, base, trained, strict=True), ORDERS):
        if one.text != other.text:
            yield question, one, other, order


def _judged(judge: Judge, question: Question, base: Answer, trained: Answer, order: Order) -> Judgement:
    a, b = (base, trained) if order == "base first" else (trained, base)
    reply: Reply = judge.ask(question_about(question.text, a.text, b.text))
    if reply.status != "replied":
        return Judgement(question.key, order, reply.status, None, reply.text)
    reading = read_reply(reply.text)
    if reading.verdict is None:
        return Judgement(question.key, order, reading.problem or "unreadable", None, reply.text)
    return Judgement(
        question.key, order, "verdict", _winner(reading.verdict == "A", order, reading.verdict), reply.text
    )


def _winner(first_won: bool, order: Order, verdict: str) -> Winner:
    if verdict == "tie":
        return "tie"
    return "base" if first_won == (order == "base first") else "trained"


_SAID = {
    "timed out": ("did not reply in time", "Ask again later; the judge may be overloaded."),
    "failed": ("did not reply", "Look at the judge's own log."),
    "refused": ("refused to judge", "Name another model with --judge-model."),
    "unreadable": ("gave no verdict that can be read", "Name a model that follows instructions with --judge-model."),
}


def _require_some_verdict(judgements: Sequence[Judgement], record: JudgeRecord, done: int, wanted: int) -> None:
    """Stop where a whole batch came to nothing: the rest would too, and may cost money.

    Raises:
        UserError: says what happened, shows one reply, and how to go on.
    """
    if any(one.outcome == "verdict" for one in judgements):
        return
    outcome, count = Counter(one.outcome for one in judgements).most_common(1)[0]
    what, fix = _SAID[outcome]
    shown = next(one.reply for one in judgements if one.outcome == outcome)
    example = f": {' '.join(shown.split())[:120]!r}" if shown.strip() else ""
    raise UserError(
        f"the judge {record.heading['judge']} {what}, {count} times of {len(judgements)}{example}.",
        f"{fix} {done:,} of {wanted:,} replies are kept in {record.file}; the same command goes on from there.",
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
