"""How often the trained model's answer is preferred, as it is and as it would be if the answers were equally long."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from simpo_cli import statistics
from simpo_cli.statistics import CONFIDENCE, Measured

MIN_PROMPTS = 10
"""Under these many prompts there is no length-controlled win rate."""

_PRIOR = 5.0
"""Standard deviation of the normal prior on each coefficient: e^5 is a win rate of 99.3 %. It keeps a judge that always
prefers one model, or one length, from running away to infinity, and moves nothing else that can be seen."""


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """The win rate at equal lengths, and how strongly the verdicts follow length.

    Attributes:
        win_rate: sigmoid(theta), with its interval.
        length_effect: phi, the gain in log-odds where the trained answer is much the longer one; see
            `length_controlled`.
    """

    win_rate: Measured
    length_effect: Measured


def win_rate(scores: Sequence[float], prompts: Sequence[str]) -> Measured:
    """Share of verdicts for the trained model, a tie counting one half; the two orders of a prompt are one sample.

    Args:
        scores: (n,) 1 for the trained model, 0 for the base, 0.5 for a tie.
        prompts: (n,) the prompt of each verdict.
    """
    return statistics.proportion(scores, prompts)


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


def _fit(features: NDArray[np.float64], won: NDArray[np.float64]) -> NDArray[np.float64]:
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


def _curvature(features: NDArray[np.float64], chances: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = (chances * (1 - chances))[:, None]
    curvature: NDArray[np.float64] = features.T @ (spread * features) + np.eye(features.shape[1]) / _PRIOR**2
    return curvature


def _deviations(
    features: NDArray[np.float64],
    won: NDArray[np.float64],
    weights: NDArray[np.float64],
    codes: NDArray[np.intp],
    num_prompts: int,
) -> NDArray[np.float64]:
    """(2,) standard deviations of the coefficients when it is prompts that were drawn."""
    chances = 1 / (1 + np.exp(-features @ weights))
    inverse = np.linalg.inv(_curvature(features, chances))
    slopes = np.zeros((num_prompts, features.shape[1]))
    np.add.at(slopes, codes, (won - chances)[:, None] * features)
    variance = num_prompts / (num_prompts - 1) * inverse @ (slopes.T @ slopes) @ inverse
    # verdicts that are all the same show no spread by prompt: then what as many independent ones would have counts
    deviations: NDArray[np.float64] = np.sqrt(np.maximum(np.diag(variance), np.diag(inverse)))
    return deviations


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
