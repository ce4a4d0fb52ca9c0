"""What a folder of answers says, as JSON: lengths, ends, repetition, variety, refusals, what a rule can check, verdicts
of people and judges.

Base against trained, by prompt. Nothing here needs torch.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simpo_cli import statistics
from simpo_cli.data.pair import last_of_user
from simpo_cli.evaluate.checked import checked_document
from simpo_cli.evaluate.generate.blind import KEY, SHEET, read_verdicts
from simpo_cli.evaluate.generate.folder import MODES, SCHEMA_VERSION, SIDES, Answer, AnswerFolder
from simpo_cli.evaluate.judge import judge_document
from simpo_cli.evaluate.paired import paired_means, paired_shares
from simpo_cli.statistics import Measured

REPEATED = 4
"""Tokens of the grams whose repetition is counted (Welleck et al. 2020, arXiv:1908.04319)."""

_REFUSALS = (
    r"(i'?m|i am) (very |so |really |truly )?(sorry|afraid)\b.{0,40}\b(can'?t|cannot|can not|unable|won'?t|not able)",
    r"(sorry|unfortunately),? (but )?(i|we) (can'?t|cannot|can not|won'?t|am unable|am not able|'m unable|'m not able)",
    r"i (can'?t|cannot|can not|won'?t|will not) "
    r"(help|assist|do that|comply|provide|support|fulfil|answer|create|write)",
    r"i(('m| am) (unable|not able)|'m not going) to\b",
    r"(as|being|i'?m|i am) an? (ai|artificial intelligence|large)? ?(language )?(model|assistant)?,? ?i "
    r"(can'?t|cannot|can not|am unable|am not able|don'?t|do not)",
    r"i must (decline|refuse)\b",
)
_REFUSAL = re.compile("|".join(_REFUSALS), re.IGNORECASE | re.DOTALL)
_OPENING = 200  # characters in which a refusal shows itself
_EXAMPLES = 3


def answers_document(path: Path) -> dict[str, Any]:
    """What a folder of answers says: the measures of each mode, what people have written into the sheet, and
    what judges have said.

    Raises:
        UserError: answers are missing, or a file is damaged.
    """
    folder = AnswerFolder.open(path)
    answers = {mode: [folder.in_order(side, mode) for side in SIDES] for mode in MODES}
    asked = [last_of_user(question.turns) for question in folder.questions]
    examples = [  # the first prompts, those first to which the greedy answers differ
        {"prompt": question, "base": one.text, "trained": other.text}
        for question, one, other in zip(asked, *answers["greedy"], strict=True)
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "answers",
        "folder": str(path),
        "manifest": dict(folder.manifest),
        "measures": {
            mode: {**measure_answers(*both), "checked": checked_document(asked, *both)}
            for mode, both in answers.items()
        },
        "examples": sorted(examples, key=lambda row: row["base"] == row["trained"])[:_EXAMPLES],
        "people": read_verdicts(path),
        "judges": judge_document(path),
        "sheet": str(path / SHEET),
        "key": str(path / KEY),
    }


def repeated_share(ids: Sequence[Hashable]) -> float:
    """Share of an answer's grams of `REPEATED` tokens that occurred in it before; 0 where it is shorter."""
    grams = _grams(ids, REPEATED)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _grams(ids: Sequence[Hashable], size: int) -> list[tuple[Hashable, ...]]:
    return [tuple(ids[start : start + size]) for start in range(len(ids) - size + 1)]


def distinct(answers: Iterable[Sequence[int]], size: int) -> float | None:
    """Different grams of `size` tokens over all grams of all answers (Li et al. 2016, arXiv:1510.03055)."""
    different: set[tuple[Hashable, ...]] = set()
    total = 0
    for ids in answers:
        grams = _grams(ids, size)
        different.update(grams)
        total += len(grams)
    return len(different) / total if total else None


def is_refusal(text: str) -> bool:
    """Whether an answer opens with one of the usual English ways to refuse; a model may refuse in other words."""
    return _REFUSAL.search(text[:_OPENING].replace("\u2019", "'")) is not None


def mean_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Measured | None:
    """Ratio of two means over the same prompts, with its interval by linearisation (the delta method).

        r = mean(t) / mean(b),   r_i = r + (t_i - r * b_i) / mean(b),   whose mean is r

    None where the denominators are all 0.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if not below.mean():
        return None
    ratio = above.mean() / below.mean()
    return statistics.mean(ratio + (above - ratio * below) / below.mean())


def measure_answers(base: Sequence[Answer], trained: Sequence[Answer]) -> dict[str, Any]:
    """Both models' answers to the same prompts, and how they differ.

    Args:
        base, trained: one answer a prompt, the same prompts in the same order, at least one.

    Returns:
        The JSON of one mode. What was measured on answers is {value, ci, n}; a share comes with the test of its
        difference. `distinct` has no interval: it describes these texts, and depends on how much of them there is, so
        it is taken of as many first tokens of either answer as both have.
    """
    assert [answer.key for answer in base] == [answer.key for answer in trained], "answers to the same prompts"
    both = {"base": base, "trained": trained}

    def each(measure: Callable[[Answer], float]) -> dict[str, list[float]]:
        return {side: [float(measure(answer)) for answer in answers] for side, answers in both.items()}

    shorter = [min(len(one.ids), len(other.ids)) for one, other in zip(base, trained, strict=True)]
    document: dict[str, Any] = {
        "prompts": len(base),
        "tokens": _lengths(each(lambda answer: len(answer.ids))),
        "words": _lengths(each(lambda answer: len(answer.text.split()))),
        "repeated_4_grams": paired_means(each(lambda answer: repeated_share(answer.ids))),
        "no_end": paired_shares(each(lambda answer: not answer.ended)),
        "empty": paired_shares(each(lambda answer: not answer.text)),
        "refusals": paired_shares(each(lambda answer: is_refusal(answer.text))),
    }
    for size in (1, 2):
        document[f"distinct_{size}"] = {
            side: distinct((answer.ids[:most] for answer, most in zip(answers, shorter, strict=True)), size)
            for side, answers in both.items()
        }
    document["same_answers"] = sum(one.ids == other.ids for one, other in zip(base, trained, strict=True))
    return document


def _lengths(values: Mapping[str, list[float]]) -> dict[str, Any]:
    ratio = mean_ratio(values["trained"], values["base"])
    return {**paired_means(values), "ratio": None if ratio is None else ratio.as_json()}
