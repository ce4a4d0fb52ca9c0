"""What a model says of single pairs, token by token, and what the objective makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from simpo_cli.data.pair import EncodedPair
from simpo_cli.evaluate.opening import OpenModel
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import means_of
from simpo_cli.objective import terms_under
from simpo_cli.recipe.schema import LossRecipe
from simpo_cli.stages import stage


@dataclass(frozen=True, slots=True)
class ResponseScores:
    """One response under the model.

    Attributes:
        logps: log-probability of each scored token, nats.
        mean: m(y|x), nats per token.
        reward: beta times it.
    """

    logps: tuple[float, ...]
    mean: float
    reward: float

    @property
    def total(self) -> float:
        """log p(y|x): the sum over the tokens, nats."""
        return sum(self.logps)


@dataclass(frozen=True, slots=True)
class TokenScores:
    """One pair under the model: its two responses, and its loss."""

    chosen: ResponseScores
    rejected: ResponseScores
    loss: float

    @property
    def margin(self) -> float:
        """Reward of the chosen response less that of the rejected one."""
        return self.chosen.reward - self.rejected.reward


def score_tokens(opened: OpenModel, pairs: Sequence[EncodedPair], loss: LossRecipe) -> list[TokenScores]:
    """Score pairs as a training step does, one at a time, and keep every token's log-prob."""
    scores = []
    with stage("scoring pairs", len(pairs)) as scoring:
        for pair in pairs:
            packed = pack([pair], opened.accelerator.device)
            with torch.no_grad(), opened.accelerator.autocast():
                logps = opened.policy(packed)
                chosen, rejected = means_of(logps, packed)
            terms = terms_under(loss, chosen, rejected)
            of_chosen, of_rejected = logps.split(packed.response_lengths[0].tolist())
            scores.append(
                TokenScores(
                    ResponseScores(tuple(of_chosen.tolist()), chosen.item(), terms.rewards_chosen.item()),
                    ResponseScores(tuple(of_rejected.tolist()), rejected.item(), terms.rewards_rejected.item()),
                    terms.losses.item(),
                )
            )
            scoring.advance()
    return scores
