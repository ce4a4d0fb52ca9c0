"""How well the label can be told from a response's surface alone: a baseline for trained models.

A response is described by a few counts that need no understanding: its length, lists, bold, code, how it begins. The
difference of the two descriptions goes into a logistic regression without an intercept, so that the classifier cannot
know which side is called chosen: swapping the sides swaps its answer. It is judged on prompts that it was not fitted
on. Nothing is drawn at random, so the same pairs give the same number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpo_cli.audit.measures import FEATURES, Differences
from simpo_cli.statistics import Measured, proportion

NUM_FOLDS = 5
MIN_PROMPTS = 10
"""Under so many prompts nothing is fitted."""
_MOST_FITTED = 100_000  # pairs that a fit looks at: a few weights need no more, and time stays in bounds
_RIDGE = 1.0  # keeps weights finite where a feature tells every label
TIE = 1e-9
"""A margin under it is none."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SurfaceClassifier:
    """A fitted classifier."""

    weights: Floats  # (features,) for differences in units of `scale`
    scale: Floats  # (features,) root mean square of each feature's difference

    def margins(self, differences: Differences) -> Floats:
        """(pairs,) above 0 where the chosen response looks like the better one."""
        margins: Floats = differences.astype(np.float64) @ (self.weights / self.scale)
        return margins


@dataclass(frozen=True, slots=True)
class SurfaceResult:
    """What the surface tells on pairs whose prompts the classifier had not seen."""

    accuracy: Measured  # ties count one half
    ties: int  # pairs with no difference that it could go by
    weights: dict[str, float]  # of each feature, fitted on all pairs, in units of its root mean square

    def as_json(self) -> dict[str, Any]:
        """The result as the document holds it; weights are rounded, because their last digits depend on the machine."""
        weights = {name: round(weight, 4) + 0.0 for name, weight in self.weights.items()}
        return {**self.accuracy.as_json(), "ties": self.ties, "folds": NUM_FOLDS, "weights": weights}


def leading(weights: Mapping[str, float], most: int) -> list[tuple[str, float]]:
    """The features that a classifier goes by, the heaviest first; those under a tenth of it are left out."""
    ordered = sorted(weights.items(), key=lambda item: -abs(item[1]))[:most]
    return [(name, weight) for name, weight in ordered if weight and abs(weight) >= abs(ordered[0][1]) / 10]


def fit(differences: Differences) -> SurfaceClassifier:
    """Logistic regression without intercept by Newton's method, on at most 100,000 pairs taken at equal distances.

    minimise  sum over pairs of -log sigmoid(w . d)  +  |w|^2 / 2
    """
    step = -(-len(differences) // _MOST_FITTED)
    rows = differences[::step].astype(np.float64)
    scale = np.sqrt((rows**2).mean(axis=0))
    scale[scale == 0] = 1.0
    rows /= scale
    weights = np.zeros(rows.shape[1])
    loss = _loss(rows, weights)
    for _ in range(100):
        wrong = 1 / (1 + np.exp(np.clip(rows @ weights, -500, 500)))  # (pairs,) chance of the wrong side
        gradient = _RIDGE * weights - rows.T @ wrong
        curvature = (rows.T * (wrong * (1 - wrong))) @ rows + _RIDGE * np.eye(len(weights))
        move = np.linalg.solve(curvature, gradient)
        size = 1.0
        while size > 1e-6 and _loss(rows, weights - size * move) > loss:
            size /= 2  # the whole step can go too far where a feature tells nearly every label
        weights = weights - size * move
        loss = _loss(rows, weights)
        if np.abs(size * move).max() < 1e-8:
            break
    return SurfaceClassifier(weights, scale)


def _loss(rows: Floats, weights: Floats) -> float:
    return float(np.logaddexp(0, -(rows @ weights)).sum() + _RIDGE / 2 * (weights**2).sum())


def judge(differences: Differences, prompts: NDArray[np.uint64]) -> SurfaceResult | None:
    """Accuracy of the classifier on prompts that it was not fitted on, in five folds; None where prompts are too few.

    Args:
        differences: (pairs, features) chosen minus rejected.
        prompts: (pairs,) a hash of each pair's prompt: it decides the fold, so pairs of a prompt stay together.
    """
    folds = prompts % NUM_FOLDS
    if len(np.unique(prompts)) < MIN_PROMPTS or len(np.unique(folds)) < 2:
        return None
    right = np.empty(len(prompts))
    for fold in range(NUM_FOLDS):
        unseen = folds == fold
        if unseen.any():
            margins = fit(differences[~unseen]).margins(differences[unseen])
            right[unseen] = np.where(np.abs(margins) < TIE, 0.5, margins > 0)
    weights = fit(differences).weights.tolist()
    return SurfaceResult(
        accuracy=proportion(right, prompts),
        ties=int((right == 0.5).sum()),
        weights=dict(zip(FEATURES, weights, strict=True)),
    )
