"""Scoring pairs: m(y|x) of both responses of every pair, under the model as it is."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import microbatches
from simpo_cli.data.store import lengths_of, prompt_keys_of
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy
from simpo_cli.stages import stage


@dataclass(frozen=True)
class PairScores:
    """What a model says of pairs, each array of shape (P,) in the order of the pairs.

    Attributes:
        chosen, rejected: mean log-probability of each response, nats per token, float64 copies of float32 results.
        chosen_lengths, rejected_lengths: scored tokens.
        prompt_keys: a hash of each pair's prompt.
    """

    chosen: NDArray[np.float64]
    rejected: NDArray[np.float64]
    chosen_lengths: NDArray[np.int64]
    rejected_lengths: NDArray[np.int64]
    prompt_keys: tuple[Hashable, ...]

    @classmethod
    def of(
        cls, pairs: Sequence[EncodedPair], chosen: NDArray[np.float64], rejected: NDArray[np.float64]
    ) -> "PairScores":
        """The scores of these pairs, in their order."""
        lengths = lengths_of(pairs)
        return cls(chosen, rejected, lengths[:, 1], lengths[:, 2], tuple(prompt_keys_of(pairs).tolist()))

    def __len__(self) -> int:
        return len(self.prompt_keys)

    def select(self, positions: Sequence[int]) -> "PairScores":
        """The scores of some of the pairs."""
        at = list(positions)
        return PairScores(
            self.chosen[at],
            self.rejected[at],
            self.chosen_lengths[at],
            self.rejected_lengths[at],
            tuple(self.prompt_keys[i] for i in at),
        )


def score_pairs(
    policy: Policy,
    pairs: Sequence[EncodedPair],
    accelerator: Accelerator,
    budget: int,
) -> PairScores:
    """Score pairs without gradients, in micro-batches of at most `budget` tokens.

    Scores stay on the device until all are there, so that no micro-batch waits for the one before. The policy's
    training mode is put back as it was found.
    """
    means = torch.empty(2, len(pairs), dtype=torch.float64, device=accelerator.device)
    order: list[int] = []
    was_training = policy.training
    policy.eval()
    try:
        with torch.no_grad(), accelerator.autocast(), stage("scoring pairs", len(pairs)) as scoring:
            for positions in scoring.advancing(microbatches(pairs, budget, policy.packing)):
                both = policy.response_means(pack([pairs[i] for i in positions], accelerator.device))
                means[:, len(order) : len(order) + len(positions)] = torch.stack(both)
                order += positions
    finally:
        policy.train(was_training)
    scores = np.empty((2, len(pairs)))
    scores[:, order] = means.cpu().numpy()
    return PairScores.of(pairs, scores[0], scores[1])
