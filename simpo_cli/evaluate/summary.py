"""What held-out pairs say about a model, each number with its interval and its count."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from simpo_cli import statistics
from simpo_cli.evaluate.score import PairScores
from simpo_cli.objective import terms_under
from simpo_cli.recipe.schema import LossRecipe
from simpo_cli.statistics import Measured

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class EvalSummary:
    """The numbers of one model on one set of pairs; see `summarise`."""

    pairs: int
    prompts: int
    ties: int
    loss: Measured
    accuracy: Measured
    margin: Measured
    target_reached: Measured
    logps_chosen: Measured
    logps_rejected: Measured
    length: statistics.LengthStrata
    spearman: float | None
    longer_wins: Measured

    def as_json(self, *, model: str, data: str) -> dict[str, Any]:
        """The document of `simpo eval --json`."""
        strata = (self.length["chosen_longer"], self.length["chosen_shorter"], self.length["balanced"])
        longer, shorter, balanced = (None if measured is None else measured.as_json() for measured in strata)
        return {
            "schema_version": SCHEMA_VERSION,
            "model": model,
            "data": data,
            "pairs": self.pairs,
            "prompts": self.prompts,
            "loss": self.loss.as_json(),
            "accuracy": self.accuracy.as_json(),
            "ties": self.ties,
            "margin": self.margin.as_json(),
            "target_reached": self.target_reached.as_json(),
            "logps/chosen": self.logps_chosen.as_json(),
            "logps/rejected": self.logps_rejected.as_json(),
            "length": {
                "chosen_longer": longer,
                "chosen_shorter": shorter,
                "balanced": balanced,
                "spearman": self.spearman,
            },
            "baselines": {"longer_wins": self.longer_wins.as_json()},
        }


def correct(scores: PairScores) -> NDArray[np.float64]:
    """(P,) 1 where the chosen response has the higher mean log-probability, 0.5 where both are equal, else 0."""
    return np.where(scores.chosen > scores.rejected, 1.0, np.where(scores.chosen == scores.rejected, 0.5, 0.0))


def summarise(scores: PairScores, loss: LossRecipe) -> EvalSummary:
    """Loss, accuracy, margin and log-probs of scored pairs under an objective.

    Intervals are 95 % and go by prompt where prompts repeat (see `statistics`).
    """
    groups = scores.prompt_keys
    terms = terms_under(loss, torch.from_numpy(scores.chosen), torch.from_numpy(scores.rejected))
    margins = (terms.rewards_chosen - terms.rewards_rejected).numpy()
    right = correct(scores)
    lengths = (scores.chosen_lengths, scores.rejected_lengths)
    return EvalSummary(
        pairs=len(scores),
        prompts=len(set(groups)),
        ties=int((right == 0.5).sum()),
        loss=statistics.mean(terms.losses.numpy(), groups),
        accuracy=statistics.proportion(right, groups),
        margin=statistics.mean(margins, groups),
        target_reached=statistics.proportion((margins > loss.margin).astype(np.float64), groups),
        logps_chosen=statistics.mean(scores.chosen, groups),
        logps_rejected=statistics.mean(scores.rejected, groups),
        length=statistics.length_strata(right, *lengths, groups),
        spearman=statistics.spearman(
            np.concatenate([scores.chosen, scores.rejected]), np.concatenate(lengths).astype(np.float64)
        ),
        longer_wins=statistics.longer_wins(*lengths, groups),
    )
