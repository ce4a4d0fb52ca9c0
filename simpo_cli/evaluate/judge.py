"""`simpo eval --judge`: both orders of every pair of answers before a judge, every reply kept as it comes, and how
often the trained model's answer is preferred, as it is and as it would be if the answers were equally long.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from scipy.special import stdtrit

from simpo_cli import statistics
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.generate.folder import Answer, AnswerFolder, add_rows, differing, read_rows
from simpo_cli.evaluate.generate.prompts import Question
from simpo_cli.evaluate.judge_client import INSTRUCTIONS, Judge, question_about, read_reply
from simpo_cli.statistics import CONFIDENCE, Measured

Floats = NDArray[np.float64]
T = TypeVar("T")

Order = Literal["base first", "trained first"]
ORDERS: tuple[Order, ...] = ("base first", "trained first")
Winner = Literal["base", "trained", "tie"]
Outcome = Literal["verdict", "unreadable", "refused", "timed out", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("verdict", "unreadable", "refused", "timed out", "failed")

ASKED_AGAIN: tuple[Outcome, ...] = ("timed out", "failed")
"""What a second call asks again: the judge gave no reply."""

AT_ONCE = 8
"""Questions that wait for their reply together."""

MIN_PROMPTS = 10
"""Under these many prompts there is no length-controlled win rate."""

_PREFIX = "judge."
_SCORES: dict[Winner, float] = {"trained": 1.0, "tie": 0.5, "base": 0.0}
_PRIOR = 5.0
"""Standard deviation of the normal prior on each coefficient: e^5 is a win rate of 99.3 %. It keeps a judge that always
prefers one model, or one length, from running away to infinity, and moves nothing else that can be seen."""
_FAILURES = {
    "timed out": ("did not reply in time", "Ask again later; the judge may be overloaded."),
    "failed": ("did not reply", "Look at the judge's own log."),
    "refused": ("refused to judge", "Name another model with --judge-model."),
    "unreadable": ("gave no verdict that can be read", "Name a model that follows instructions with --judge-model."),
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """One reply: which prompt, which answer was shown first, what became of it, who won, and the reply itself."""

    key: str
    order: Order
    outcome: Outcome
    winner: Winner | None
    reply: str


@dataclass(frozen=True, slots=True)
class _Heading:
    """Who judged, in the first line of the file of replies."""

    judge: str
    url: str


def judge_answers(path: Path, judge: Judge, progress: Callable[[int, int], None]) -> None:
    """Have the greedy answers of a folder judged, each pair in both orders; replies are kept as they come.

    Pairs of equal texts are ties and are not asked. A second call asks what is still open: what timed out or failed,
    and what was not reached. `progress` is called after every batch: replies so far, replies wanted.

    Raises:
        UserError: the judge cannot be reached, or none of a whole batch of questions got a verdict.
    """
    folder = AnswerFolder.open(path)
    base, trained = folder.in_order("base", "greedy"), folder.in_order("trained", "greedy")
    record = _record_of(path, judge, base, trained)
    done = {place for place, one in _judgements_in(record).items() if one.outcome not in ASKED_AGAIN}
    to_ask = [
        (question, one, other, order)
        for question, one, other in zip(folder.questions, base, trained, strict=True)
        for order in ORDERS
        if one.text != other.text and (question.key, order) not in done
    ]
    wanted = len(done) + len(to_ask)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for start in range(0, len(to_ask), AT_ONCE):
            judgements = list(pool.map(lambda one: _judged(judge, *one), to_ask[start : start + AT_ONCE]))
            add_rows(record, map(asdict, judgements))
            done |= {(one.key, one.order) for one in judgements}
            progress(len(done), wanted)
            if not any(one.outcome == "verdict" for one in judgements):  # nor would the rest, and it may cost money
                kept = f"{len(done):,} of {wanted:,} replies are kept in {record}; the same command resumes there."
                raise no_verdict([(one.outcome, one.reply) for one in judgements], judge, kept)


def _record_of(folder: Path, judge: Judge, base: Sequence[Answer], trained: Sequence[Answer]) -> Path:
    """The file of a judge's replies in a folder of answers, new or resumed; its first line says who judges what.

    Raises:
        UserError: the file is of other answers, or of another endpoint.
    """
    texts = [[one.key, one.text, other.text] for one, other in zip(base, trained, strict=True)]
    answers = json.dumps(texts, ensure_ascii=False).encode("utf-8", "surrogatepass")
    heading = {
        "schema_version": 1,
        "judge": judge.model,
        "url": judge.url,
        "instructions_sha256": hashlib.sha256(INSTRUCTIONS.encode()).hexdigest(),
        "answers_sha256": hashlib.sha256(answers).hexdigest(),
    }
    name = "".join(char if char.isalnum() or char in "._-" else "-" for char in judge.model)
    record = folder / f"{_PREFIX}{name}.jsonl"
    rows = read_rows(record)
    if not rows:
        add_rows(record, [heading])
    elif rows[0] != heading:
        raise UserError(
            f"holds verdicts of something else: {differing(rows[0], heading)}.",
            "Move the file away to have everything judged again.",
            where=str(record),
        )
    return record


def _judgements_in(record: Path) -> dict[tuple[str, Order], Judgement]:
    """The last reply on each prompt in each order.

    Raises:
        UserError: a row is no reply.
    """
    rows, shape = enumerate(read_rows(record)[1:], start=2), TypeAdapter(Judgement)
    replies = [_checked(shape, row, f"{record}:{line}") for line, row in rows]
    return {(one.key, one.order): one for one in replies}


def _checked(shape: TypeAdapter[T], row: Mapping[str, Any], where: str) -> T:
    try:
        return shape.validate_python(row)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)[0]
        problem = f"{'.'.join(map(str, found['loc']))}: {found['msg']}."
        raise UserError(problem, "Move the file away.", where=where) from error


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


def no_verdict(replies: Sequence[tuple[Outcome, str]], judge: Judge, kept: str) -> UserError:
    """What happened to a whole batch, with one reply; `kept` says what becomes of what there is already."""
    outcome, count = Counter(outcome for outcome, _ in replies).most_common(1)[0]
    what, fix = _FAILURES[outcome]
    reply = next(reply for one, reply in replies if one == outcome)
    example = f": {' '.join(reply.split())[:120]!r}" if reply.strip() else ""
    problem = f"the judge {judge.model} {what}, {count} times of {len(replies)}{example}."
    return UserError(problem, f"{fix} {kept}", where=judge.url, exit_code=ExitCode.ENVIRONMENT)


def judge_document(path: Path) -> list[dict[str, Any]]:
    """What each judge of a folder's answers has said so far; complete or not is said in `prompts`.

    Raises:
        UserError: a file is damaged.
    """
    folder = AnswerFolder.open(path)
    base, trained = folder.in_order("base", "greedy"), folder.in_order("trained", "greedy")
    files = sorted(path.glob(f"{_PREFIX}*.jsonl"))
    return [_document(file, rows[0], base, trained) for file in files if (rows := read_rows(file))]


def _document(
    record: Path, heading: Mapping[str, Any], base: Sequence[Answer], trained: Sequence[Answer]
) -> dict[str, Any]:
    who = _checked(TypeAdapter(_Heading), heading, f"{record}:1")
    judgements = _judgements_in(record)
    scores, longer, prompts = list[float](), list[float](), list[str]()
    consistent, first_won, equal = list[float](), list[float](), 0
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
            shown_first = [order.split()[0] for order in ORDERS]
            first_won += [float(won == side) for won, side in zip(winners, shown_first, strict=True) if won != "tie"]
        scores += [_SCORES[winner] for winner in winners if winner is not None]
        longer += [float(len(other.text) - len(one.text))] * 2
        prompts += [one.key] * 2
    controlled = length_controlled(scores, longer, prompts) if prompts else None
    outcomes = Counter(one.outcome for one in judgements.values())
    return {
        "judge": who.judge,
        "url": who.url,
        "file": str(record),
        "prompts": {"all": len(base), "judged": len(prompts) // 2, "equal_answers": equal},
        "replies": {name.replace(" ", "_"): outcomes[name] for name in OUTCOMES},
        "win_rate": statistics.proportion(scores, prompts).as_json() if prompts else None,
        "length_controlled": controlled and controlled.win_rate.as_json(),
        "length_effect": controlled and controlled.length_effect.as_json(),
        "position_consistency": statistics.proportion(consistent).as_json() if consistent else None,
        "first_shown_wins": sum(first_won) / len(first_won) if first_won else None,
        "verdicts": {winner: scores.count(score) for winner, score in _SCORES.items()},
    }


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """The win rate at equal lengths, and the gain in log-odds where the trained answer is much the longer one."""

    win_rate: Measured
    length_effect: Measured


def length_controlled(
    scores: Sequence[float], length_differences: Sequence[float], prompts: Sequence[str]
) -> LengthControlled | None:
    """The win rate that the verdicts would have if both answers were equally long.

    After AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475): a logistic regression of the verdict on the difference in
    length, read off at the difference 0.

        P(trained preferred) = sigmoid(theta + phi * tanh((l_trained - l_base) / s)),   win rate = sigmoid(theta)

    s is the standard deviation of the differences over prompts. Theirs has a third term, the difficulty of each
    instruction, which is estimated from the verdicts on many other models; there are none here, so it is left out. The
    interval goes by prompt (a sandwich, Liang and Zeger 1986) with Student's quantile.

    Args:
        scores: (n,) 1 for the trained model, 0 for the base, 0.5 for a tie.
        length_differences: (n,) characters of the trained answer less those of the base answer.
        prompts: (n,) the prompt of each verdict.

    Returns:
        None under 10 prompts, and where all differences are the same.
    """
    names, codes = np.unique(np.asarray(prompts), return_inverse=True)
    won = np.asarray(scores, dtype=np.float64)
    longer = np.asarray(length_differences, dtype=np.float64)
    spread = float(np.std([longer[codes == code][0] for code in range(len(names))], ddof=1)) if len(names) > 1 else 0.0
    if len(names) < MIN_PROMPTS or spread == 0:
        return None
    features = np.column_stack([np.ones_like(won), np.tanh(longer / spread)])
    weights = _fit(features, won)
    deviations = _deviations(features, won, weights, codes, len(names))
    half = float(stdtrit(len(names) - 1, 0.5 + CONFIDENCE / 2)) * deviations
    theta, phi = weights.tolist()
    return LengthControlled(
        Measured(_sigmoid(theta), _sigmoid(theta - half[0]), _sigmoid(theta + half[0]), len(won)),
        Measured(phi, phi - float(half[1]), phi + float(half[1]), len(won)),
    )


def _fit(features: Floats, won: Floats) -> Floats:
    """(2,) coefficients at the top of the penalised likelihood, by Newton's method; it is concave."""
    weights = np.zeros(features.shape[1])
    for _ in range(100):
        chances = 1 / (1 + np.exp(-features @ weights))
        slope = features.T @ (won - chances) - weights / _PRIOR**2
        step = np.linalg.solve(_curvature(features, chances), slope)
        step *= min(1.0, 2.0 / float(np.abs(step).max() or 1.0))  # not beyond where the curvature was looked at
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    return weights


def _curvature(features: Floats, chances: Floats) -> Floats:
    spread = (chances * (1 - chances))[:, None]
    curvature: Floats = features.T @ (spread * features) + np.eye(features.shape[1]) / _PRIOR**2
    return curvature


def _deviations(features: Floats, won: Floats, weights: Floats, codes: NDArray[np.intp], num_prompts: int) -> Floats:
    """(2,) standard deviations of the coefficients when it is prompts that were drawn."""
    chances = 1 / (1 + np.exp(-features @ weights))
    inverse = np.linalg.inv(_curvature(features, chances))
    slopes = np.zeros((num_prompts, features.shape[1]))
    np.add.at(slopes, codes, (won - chances)[:, None] * features)
    variance = num_prompts / (num_prompts - 1) * inverse @ (slopes.T @ slopes) @ inverse
    # verdicts that are all the same show no spread by prompt: then what as many independent ones would have counts
    deviations: Floats = np.sqrt(np.maximum(np.diag(variance), np.diag(inverse)))
    return deviations


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
