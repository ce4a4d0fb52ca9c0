"""Two models on the same pairs: what the second does better or otherwise than the first, each number with a test."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from simpo_cli import statistics
from simpo_cli.evaluate.score import PairScores
from simpo_cli.evaluate.summary import correct
from simpo_cli.objective import terms_under
from simpo_cli.recipe.schema import LossRecipe
from simpo_cli.statistics import Comparison, Measured, RankTest


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
    groups = np.asarray(after.prompt_keys)
    then, now = (
        terms_under(loss, torch.from_numpy(scores.chosen), torch.from_numpy(scores.rejected))
        for scores in (before, after)
    )
    margins = ((now.rewards_chosen - now.rewards_rejected) - (then.rewards_chosen - then.rewards_rejected)).numpy()
    chosen = after.chosen - before.chosen
    return RewardChange(
        margin=statistics.mean(margins, groups),
        margin_test=statistics.signed_rank_test(margins, groups),
        loss=statistics.mean((now.losses - then.losses).numpy(), groups),
        chosen=statistics.mean(chosen, groups),
        rejected=statistics.mean(after.rejected - before.rejected, groups),
        chosen_fell=statistics.proportion((chosen < 0).astype(np.float64), groups),
    )
