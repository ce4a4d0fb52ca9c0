"""Answers that a rule can check: the world of `builtin:guide` knows what is right to say to each of its questions.

Held-out accuracy says which of two given answers a model finds the likelier one. What it answers by itself may get
worse meanwhile, and where that can be checked, it is. Nothing here needs torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simpo_cli import statistics
from simpo_cli.builtin.corpus import check_answer
from simpo_cli.evaluate.generate.folder import Answer
from simpo_cli.evaluate.paired import paired_means, paired_shares

RULE = "builtin:guide"


@dataclass(frozen=True, slots=True)
class CheckedAnswer:
    """What the rule says of one answer."""

    exact: bool  # wholly right, and ended by the model itself
    parts: float  # share of its parts that are right
    ended: bool


def checkable(questions: Sequence[str]) -> list[int]:
    """The positions of the questions that the rule knows; none where it knows fewer than half of them."""
    known = [place for place, question in enumerate(questions) if check_answer(question, "") is not None]
    return known if 2 * len(known) >= len(questions) else []


def check(questions: Sequence[str], answers: Sequence[Answer]) -> list[CheckedAnswer]:
    """Check an answer to each of these questions, all of which the rule knows."""
    checked = []
    for question, answer in zip(questions, answers, strict=True):
        found = check_answer(question, answer.text)
        assert found is not None, f"no question of {RULE}: {question!r}"
        checked.append(CheckedAnswer(found.exact and answer.ended, found.parts, answer.ended))
    return checked


def compare_checked(sides: dict[str, list[CheckedAnswer]]) -> dict[str, Any]:
    """Two models' answers to the same questions, each asked once: wholly right ones, right parts, and how many ended.

    Args:
        sides: of each model, by name, the start model's first; at least one answer.

    Returns:
        The `checked` of run.json and of `simpo eval --generate --json`. The p value of a share is by McNemar's exact
        test, that of `parts` by Wilcoxon's signed-rank test.
    """
    parts = {side: [one.parts for one in answers] for side, answers in sides.items()}
    first, second = parts.values()
    changes = [after - before for before, after in zip(first, second, strict=True)]
    return {
        "rule": RULE,
        "prompts": len(first),
        "exact": paired_shares({side: [float(one.exact) for one in answers] for side, answers in sides.items()}),
        "parts": {**paired_means(parts), "p_value": statistics.signed_rank_test(changes).p_value},
        "ended": paired_shares({side: [float(one.ended) for one in answers] for side, answers in sides.items()}),
    }


def checked_document(
    questions: Sequence[str], base: Sequence[Answer], trained: Sequence[Answer]
) -> dict[str, Any] | None:
    """What the rule says of the answers of both models; None where it does not know the questions."""
    places = checkable(questions)
    if not places:
        return None
    known = [questions[place] for place in places]
    both = {"base": base, "trained": trained}
    return compare_checked({side: check(known, [said[place] for place in places]) for side, said in both.items()})
