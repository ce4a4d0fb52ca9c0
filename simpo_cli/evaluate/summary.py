"""What held-out pairs say about a model, each number with its interval and its count."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from simpo_cli import statistics
from simpo_cli.evaluate.score import PairScores
from simpo_cli.objective import terms_under
from simpo_cli.recipe.schema import LossRecipe
from simpo_cli.statistics import Measured

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
    terms = terms_under(loss, torch.from_numpy(scores.chosen), torch.from_numpy(scores.rejected))
    margins = (terms.rewards_chosen - terms.rewards_rejected).numpy()
    right = correct(scores)
    lengths = (scores.chosen_lengths, scores.rejected_lengths)
    pooled, within = _length_correlations(scores)
    return EvalSummary(
        pairs=len(scores),
        prompts=int(codes.max()) + 1,
        effective_prompts=statistics.effective_prompts(codes),
        ties=int((right == 0.5).sum()),
        loss=statistics.mean(terms.losses.numpy(), groups),
        accuracy=statistics.proportion(right, groups),
        margin=statistics.mean(margins, groups),
        margin_median=statistics.median(margins, groups),
        target_reached=statistics.proportion((margins > loss.margin).astype(np.float64), groups),
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
