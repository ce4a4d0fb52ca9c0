"""What scored pairs say: of one model, of two models on the same pairs, and by a column of the records.

Each number comes with its interval and its count, each difference with its test.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpo_cli import statistics
from simpo_cli.errors import UserError
from simpo_cli.evaluate.scoring import PairScores
from simpo_cli.objective import Objective
from simpo_cli.recipe.schema import LossRecipe
from simpo_cli.statistics import MIN_STRATUM_PAIRS, Comparison, Measured, RankTest

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class EvalSummary:
    """The numbers of one model on one set of pairs; see `summarise`."""

    pairs: int
    prompts: int
    effective_prompts: float
    ties: int
    loss: Measured
    accuracy: Measured
    margin: Measured
    margin_median: Measured
    target_reached: Measured
    logps_chosen: Measured
    logps_rejected: Measured
    length: statistics.LengthStrata
    length_buckets: list[statistics.LengthBucket]
    spearman: Measured | None
    spearman_within: Measured | None
    longer_wins: Measured
    calibration: statistics.Calibration

    def as_json(self, *, model: str, data: str) -> dict[str, Any]:
        """What `simpo eval --json` says of one model, and run.json of the start model and the saved one."""
        strata = (self.length["chosen_longer"], self.length["chosen_shorter"], self.length["balanced"])
        longer, shorter, balanced = (None if measured is None else measured.as_json() for measured in strata)
        return {
            "schema_version": SCHEMA_VERSION,
            "model": model,
            "data": data,
            "pairs": self.pairs,
            "prompts": self.prompts,
            "effective_prompts": self.effective_prompts,
            "loss": self.loss.as_json(),
            "accuracy": self.accuracy.as_json(),
            "ties": self.ties,
            "margin": self.margin.as_json(),
            "margin_median": self.margin_median.as_json(),
            "target_reached": self.target_reached.as_json(),
            "logps/chosen": self.logps_chosen.as_json(),
            "logps/rejected": self.logps_rejected.as_json(),
            "length": {
                "chosen_longer": longer,
                "chosen_shorter": shorter,
                "balanced": balanced,
                "buckets": [bucket.as_json() for bucket in self.length_buckets],
                "spearman": None if self.spearman is None else self.spearman.as_json(),
                "spearman_within": None if self.spearman_within is None else self.spearman_within.as_json(),
            },
            "baselines": {"longer_wins": self.longer_wins.as_json()},
            "calibration": self.calibration.as_json(),
        }


def correct(scores: PairScores) -> NDArray[np.float64]:
    """(P,) 1 where the chosen response has the higher mean log-probability, 0.5 where both are equal, else 0."""
    return np.where(scores.chosen > scores.rejected, 1.0, np.where(scores.chosen == scores.rejected, 0.5, 0.0))


def summarise(scores: PairScores, loss: LossRecipe) -> EvalSummary:
    """Loss, accuracy, margin and log-probs of scored pairs under an objective.

    Intervals are 95 % and go by prompt where prompts repeat (see `statistics`).
    """
    groups = np.asarray(scores.prompt_keys)
    _, codes = np.unique(groups, return_inverse=True)
    objective = Objective(loss)
    margins = objective.margin(scores.chosen, scores.rejected)
    right = correct(scores)
    lengths = (scores.chosen_lengths, scores.rejected_lengths)
    pooled, within = _length_correlations(scores)
    return EvalSummary(
        pairs=len(scores),
        prompts=int(codes.max()) + 1,
        effective_prompts=statistics.effective_prompts(codes),
        ties=int((right == 0.5).sum()),
        loss=statistics.mean(objective.losses(scores.chosen, scores.rejected), groups),
        accuracy=statistics.proportion(right, groups),
        margin=statistics.mean(margins, groups),
        margin_median=statistics.median(margins, groups),
        target_reached=statistics.proportion((margins > objective.gamma).astype(np.float64), groups),
        logps_chosen=statistics.mean(scores.chosen, groups),
        logps_rejected=statistics.mean(scores.rejected, groups),
        length=statistics.length_strata(right, *lengths, groups),
        length_buckets=statistics.length_buckets(right, *lengths, groups),
        spearman=pooled,
        spearman_within=within,
        longer_wins=statistics.longer_wins(*lengths, groups),
        calibration=statistics.calibration(margins, groups),
    )


def _length_correlations(scores: PairScores) -> tuple[Measured | None, Measured | None]:
    """Spearman's rank correlation of reward and length over all responses, and within pairs; n counts pairs.

    Within pairs both are taken less their mean over the pair, so what prompts differ in plays no part.
    """
    rewards = np.stack([scores.chosen, scores.rejected])
    lengths = np.stack([scores.chosen_lengths, scores.rejected_lengths]).astype(np.float64)
    groups = np.tile(np.asarray(scores.prompt_keys), 2)
    found = (
        statistics.spearman(rewards.ravel(), lengths.ravel(), groups),
        statistics.spearman((rewards - rewards.mean(axis=0)).ravel(), (lengths - lengths.mean(axis=0)).ravel(), groups),
    )
    pooled, within = (None if one is None else replace(one, n=len(scores)) for one in found)
    return pooled, within


@dataclass(frozen=True)
class RewardChange:
    """How margins and log-probs changed; only between models that score the same tokens.

    Attributes:
        margin, loss: mean over pairs of the change, in units of the reward and of the loss.
        margin_test: whether margins lie around where they were.
        chosen, rejected: mean change of the log-probs, nats per token.
        chosen_fell: share of pairs whose chosen response became less likely.
    """

    margin: Measured
    margin_test: RankTest
    loss: Measured
    chosen: Measured
    rejected: Measured
    chosen_fell: Measured


@dataclass(frozen=True)
class ModelComparison:
    """The second model less the first, see `compare_scores`; `rewards` is None where they cannot be compared."""

    accuracy: Comparison
    length_balanced: Measured | None
    smallest_effect: float | None
    rewards: RewardChange | None

    def as_json(self) -> dict[str, Any]:
        """The key `difference` of the document of `simpo eval`, and of the outcome in run.json."""
        rewards, test = self.rewards, self.accuracy
        return {
            "accuracy": test.difference.as_json(),
            "p_value": test.p_value,
            "test": test.test,
            "wins": test.wins,
            "losses": test.losses,
            "ties": test.ties,
            "smallest_effect": self.smallest_effect,
            "length_balanced": None if self.length_balanced is None else self.length_balanced.as_json(),
            "margin": None if rewards is None else rewards.margin.as_json(),
            "margin_p_value": None if rewards is None else rewards.margin_test.p_value,
            "margin_test": None if rewards is None else rewards.margin_test.test,
            "loss": None if rewards is None else rewards.loss.as_json(),
            "logps/chosen_delta": None if rewards is None else rewards.chosen.as_json(),
            "logps/rejected_delta": None if rewards is None else rewards.rejected.as_json(),
            "chosen_fell": None if rewards is None else rewards.chosen_fell.as_json(),
        }


def compare_scores(
    before: PairScores, after: PairScores, loss: LossRecipe, *, rewards_compare: bool = True
) -> ModelComparison:
    """Compare two models pair by pair.

    Args:
        before, after: the same pairs in the same order.
        loss: the objective that gives both their rewards.
        rewards_compare: False where the two score other tokens, or under other objectives: then a log-prob per token of
            one says nothing beside one of the other, while which response each prefers still does.
    """
    groups = np.asarray(after.prompt_keys)
    right = correct(before), correct(after)
    lengths = after.chosen_lengths, after.rejected_lengths
    return ModelComparison(
        accuracy=statistics.compare_accuracy(*right, groups),
        length_balanced=statistics.balanced_difference(*right, *lengths, groups),
        smallest_effect=statistics.smallest_effect(*right, groups),
        rewards=_reward_change(before, after, loss) if rewards_compare else None,
    )


def _reward_change(before: PairScores, after: PairScores, loss: LossRecipe) -> RewardChange:
    groups, objective = np.asarray(after.prompt_keys), Objective(loss)
    then, now = ((scores.chosen, scores.rejected) for scores in (before, after))
    margins = objective.margin(*now) - objective.margin(*then)
    chosen = after.chosen - before.chosen
    return RewardChange(
        margin=statistics.mean(margins, groups),
        margin_test=statistics.signed_rank_test(margins, groups),
        loss=statistics.mean(objective.losses(*now) - objective.losses(*then), groups),
        chosen=statistics.mean(chosen, groups),
        rejected=statistics.mean(after.rejected - before.rejected, groups),
        chosen_fell=statistics.proportion((chosen < 0).astype(np.float64), groups),
    )


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
