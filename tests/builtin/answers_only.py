"""A judge of preference pairs that never sees the question: what it can tell, the answers alone give away."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

Floats = NDArray[np.float64]


def answers_only_judge(train: Sequence[dict[str, Any]], judged: Sequence[dict[str, Any]]) -> Floats:
    """How the judge rules on pairs: 1 right, 0 wrong, 0.5 where it cannot tell.

    A logistic regression without intercept on the words that one answer has more often than the other, fitted on the
    training pairs with a small L2 penalty, so that its minimum is unique.

    Args:
        train: pairs to learn from, each with `chosen` and `rejected` as messages.
        judged: pairs to rule on.

    Returns:
        (J,) one ruling a pair.
    """
    vocabulary = sorted({word for pair in train for which in ("chosen", "rejected") for word in _words(pair[which])})
    column = {word: i for i, word in enumerate(vocabulary)}
    seen = _differences(train, column)

    def penalised_loss(weights: Floats) -> tuple[float, Floats]:
        scores = seen @ weights
        loss = np.logaddexp(0.0, -scores).sum() + 0.5 * float(weights @ weights)
        return float(loss), -seen.T @ expit(-scores) + weights

    weights = minimize(penalised_loss, np.zeros(len(vocabulary)), jac=True, method="L-BFGS-B").x
    scores = _differences(judged, column) @ weights
    return np.where(np.abs(scores) < 1e-9, 0.5, (scores > 0).astype(np.float64))


def _differences(pairs: Sequence[dict[str, Any]], column: dict[str, int]) -> Floats:
    """(pairs, words) how often a word occurs in the chosen answer less how often in the rejected one."""
    counts = np.zeros((len(pairs), len(column)))
    for row, pair in zip(counts, pairs, strict=True):
        for which, sign in (("chosen", 1.0), ("rejected", -1.0)):
            for word in _words(pair[which]):
                if word in column:
                    row[column[word]] += sign
    return counts


def _words(turns: Sequence[dict[str, str]]) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", " ".join(turn["content"] for turn in turns).lower())
