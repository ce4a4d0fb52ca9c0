"""A model made ready to score pairs, and its scores: m(y|x) of both responses, or every token of single pairs.

`eval`, `inspect` and `stats --model` all open a model with `open_model`: the precision and packing of training.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import fullest_microbatch, microbatches, row_tokens_of_each, tokens_of_each
from simpo_cli.data.store import lengths_of, prompt_keys_of
from simpo_cli.model.attention.interface import why_not_shared
from simpo_cli.model.device import open_accelerator
from simpo_cli.model.load import Load, ModelSource, count_parameters, load_model, require_known_ids, weights_dtype
from simpo_cli.model.memory import Workload, available_bytes, choose_budget, require_memory
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy, means_of
from simpo_cli.model.self_check import CheckPairs, SelfCheck, choose_packing
from simpo_cli.objective import Objective
from simpo_cli.recipe.schema import LossRecipe, Recipe
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


@dataclass(frozen=True)
class OpenModel:
    """A model ready to score pairs.

    Attributes:
        policy: without gradients, and with the packing that the self-check settled.
        accelerator: device and autocast.
        budget: most tokens of a micro-batch.
        check: how pairs go through the model, and the evidence.
    """

    policy: Policy
    accelerator: Accelerator
    budget: int
    check: SelfCheck

    def score(self, pairs: Sequence[EncodedPair]) -> PairScores:
        """m(y|x) of both responses of every pair."""
        return score_pairs(self.policy, pairs, self.accelerator, self.budget)


def open_model(
    recipe: Recipe,
    source: ModelSource,
    pairs: Sequence[EncodedPair],
    load: Load = load_model,
) -> OpenModel:
    """Load a model for scoring, with the precision and the packing that training with the recipe would have.

    Args:
        recipe: precision, attention and type of the weights.
        source: the model.
        pairs: what will be scored, at least one; memory and self-check go by them.
        load: reads the weights.

    Raises:
        UserError: the pairs do not fit the model's vocabulary, or the model does not fit in memory.
    """
    require_known_ids(pairs, source)
    accelerator, compute = open_accelerator(recipe)
    longest_row = int(row_tokens_of_each(pairs).max())
    why_padded = why_not_shared(source.model_class, source.config, longest_row)
    weights = weights_dtype(recipe.model, source)
    need = Workload(
        config=source.text_config,
        parameters=count_parameters(recipe.model, source),
        weights=weights,
        compute=torch.bfloat16 if compute == "bf16" else torch.float32,
        longest_row=longest_row,
        device=accelerator.device,
        available=available_bytes(accelerator.device),
    ).scoring()
    # two padded rows are never less than the pair with its prompt shared, so this fits however it turns out
    budget = choose_budget(need, accelerator.device, int(tokens_of_each(pairs, "padded").max()))
    require_memory(need, budget, adapters=True, checkpointing=True)
    policy = Policy(load(source, weights, accelerator.device)).eval()
    policy.requires_grad_(False)
    fullest = fullest_microbatch(pairs, budget, "shared_prefix")
    check = choose_packing(policy, recipe.model.attention, why_padded, CheckPairs.of(pairs, fullest, trained=False))
    return OpenModel(policy, accelerator, budget, check)


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
            terms = Objective(loss).terms(chosen, rejected)
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
