"""Accuracy by what the records say of their pairs: a source, a category, a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simpo_cli import statistics
from simpo_cli.errors import UserError
from simpo_cli.evaluate.score import PairScores
from simpo_cli.evaluate.summary import correct
from simpo_cli.statistics import MIN_STRATUM_PAIRS, Comparison, Measured

MOST_VALUES = 50


@dataclass(frozen=True)
class Slice:
    """The pairs of one value; what was measured is None under 10 pairs.

    Attributes:
        value: as the records have it; None where a record has none.
        pairs: how many.
        accuracy, baseline_accuracy: of the model, and of what it is compared with.
        comparison: of the two, if there are two.
        p_value_holm: its p-value with those of the other slices in mind.
    """

    value: str | None
    pairs: int
    accuracy: Measured | None
    baseline_accuracy: Measured | None
    comparison: Comparison | None
    p_value_holm: float | None

    def as_json(self) -> dict[str, Any]:
        """One entry of the document's `slices`."""
        comparison = self.comparison
        return {
            "value": self.value,
            "pairs": self.pairs,
            "accuracy": None if self.accuracy is None else self.accuracy.as_json(),
            "baseline_accuracy": None if self.baseline_accuracy is None else self.baseline_accuracy.as_json(),
            "difference": None if comparison is None else comparison.difference.as_json(),
            "p_value": None if comparison is None else comparison.p_value,
            "p_value_holm": self.p_value_holm,
        }


def slices_of(column: str, values: Sequence[str | None], scores: PairScores, base: PairScores | None) -> list[Slice]:
    """Accuracy of each value's pairs, the most frequent value first.

    Args:
        column: what the values are of, for the error.
        values: of each pair.
        scores, base: the same pairs under the model, and under what it is compared with.

    Raises:
        UserError: there are too many values to look at.
    """
    of_value: dict[str | None, list[int]] = {}
    for position, value in enumerate(values):
        of_value.setdefault(value, []).append(position)
    if len(of_value) > MOST_VALUES:
        raise UserError(
            f"--by {column} has {len(of_value):,} different values.",
            f"Name a column with at most {MOST_VALUES}, such as a source or a category.",
        )
    slices = []
    for value, at in sorted(of_value.items(), key=lambda item: (-len(item[1]), str(item[0]))):
        accuracy = before = comparison = None
        if len(at) >= MIN_STRATUM_PAIRS:
            of_slice = scores.select(at)
            groups = np.asarray(of_slice.prompt_keys)
            accuracy = statistics.proportion(correct(of_slice), groups)
            if base is not None:
                right = correct(base.select(at))
                before = statistics.proportion(right, groups)
                comparison = statistics.compare_accuracy(right, correct(of_slice), groups)
        slices.append(Slice(value, len(at), accuracy, before, comparison, None))
    return _adjusted(slices)


def _adjusted(slices: list[Slice]) -> list[Slice]:
    """The slices with Holm's p-values over all of them that could be compared."""
    tested = [i for i, one in enumerate(slices) if one.comparison is not None]
    p_values = [comparison.p_value for one in slices if (comparison := one.comparison) is not None]
    holm = dict(zip(tested, statistics.holm(p_values), strict=True))
    return [
        Slice(one.value, one.pairs, one.accuracy, one.baseline_accuracy, one.comparison, holm.get(i))
        for i, one in enumerate(slices)
    ]
