"""Two models on the same prompts, one number a prompt: both, their difference by prompt, and its test, as JSON.

`values` holds (prompts,) numbers of either side under its name, the start model's first, such as before and after.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simpo_cli import statistics


def paired_means(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Means of both sides, and of what the second has more."""
    first, second = values.values()
    document: dict[str, Any] = {side: _mean(numbers) for side, numbers in values.items()}
    document["difference"] = _mean(np.subtract(second, first).tolist())
    return document


def paired_shares(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Shares of both sides, of numbers that are 0 or 1, their difference, and its p value by McNemar's exact test."""
    document: dict[str, Any] = {side: statistics.proportion(numbers).as_json() for side, numbers in values.items()}
    comparison = statistics.compare_accuracy(*values.values())
    document["difference"] = comparison.difference.as_json()
    document["p_value"] = comparison.p_value
    return document


def _mean(values: Sequence[float]) -> dict[str, Any]:
    """The mean with its interval; without one where all values are the same, for a width of 0 would be a claim."""
    measured = statistics.mean(values).as_json()
    return {**measured, "ci": [None, None]} if np.ptp(values) == 0 else measured
