"""A model made ready to score pairs, and its scores: m(y|x) of both responses, their rounding, single tokens.

`eval`, `inspect` and `stats --model` all open a model with `open_model`: the precision and packing of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import fullest_microbatch, probe, row_tokens_of_each, tokens_of_each
from simpo_cli.distributed.sharded import is_sharded, reshard
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.metrics import ModelComparison, PairScores
from simpo_cli.model.attention.interface import why_not_shared
from simpo_cli.model.backend import available_bytes
from simpo_cli.model.device import open_accelerator
from simpo_cli.model.load import Load, count_parameters, load_model
from simpo_cli.model.memory import Workload, choose_budget, require_memory
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy, means_of
from simpo_cli.model.self_check import CheckPairs, SelfCheck, choose_packing
from simpo_cli.model.shares import Failure, Numbers, Share
from simpo_cli.model.source import ModelSource, require_known_ids, weights_dtype
from simpo_cli.objective import Objective
from simpo_cli.recipe.schema import LossRecipe, Recipe
from simpo_cli.run.stop import StopRequest
from simpo_cli.stages import stage

_MOST_SCORED_AGAIN = 256  # pairs: rounding is alike everywhere, and each costs as much as the evaluation of one


def score_pairs(
    policy: Policy, pairs: Sequence[EncodedPair], accelerator: Accelerator, budget: int, stop: StopRequest | None = None
) -> PairScores:
    """Score pairs without gradients, each rank its share, in micro-batches of at most `budget` tokens.

    Scores stay on the device until all are there, so that no micro-batch waits for the one before. The policy's
    training mode is put back as it was found.

    Args:
        stop: signals, on which several ranks stop together.

    Raises:
        OutOfMemoryError: a micro-batch does not fit in memory, of another rank.
        Stopped: a signal came, to this rank or another.
    """
    share = Share.of(pairs, budget, policy.packing, is_sharded=is_sharded(policy))
    means = Numbers(2, len(pairs), accelerator.device)
    was_training = policy.training
    policy.eval()
    try:
        with (
            torch.no_grad(),
            accelerator.autocast(),
            stage("scoring pairs", len(pairs)) as scoring,
            Failure(stop, is_sharded=is_sharded(policy)) as failure,
        ):
            for positions in scoring.advancing(failure.between(share.microbatches)):
                both = policy.response_means(pack([pairs[i] for i in positions], accelerator.device))
                means.add(positions, torch.stack(both))
            for _ in range(share.idle):
                policy(pack([pairs[share.shortest]], accelerator.device))
    finally:
        reshard(policy)
        policy.train(was_training)
    scores, [flags] = means.of_all(failure.flags(accelerator.device))
    failure.require_none(flags, "scoring pairs")
    chosen, rejected = scores.numpy()
    return PairScores.of(pairs, chosen, rejected)


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

    def score(self, pairs: Sequence[EncodedPair], name: str) -> PairScores:
        """m(y|x) of both responses of every pair.

        Raises:
            UserError: one is not finite; the error calls the model by its `name`.
        """
        scores = score_pairs(self.policy, pairs, self.accelerator, self.budget)
        if not np.isfinite([scores.chosen, scores.rejected]).all():
            raise UserError(
                f"the log-probs of {name} are not finite.",
                "Its weights are damaged, or hold numbers that train.precision=fp32 would keep.",
                exit_code=ExitCode.NUMBERS,
            )
        return scores


def open_model(recipe: Recipe, source: ModelSource, pairs: Sequence[EncodedPair], load: Load = load_model) -> OpenModel:
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
        quantization=source.quantization,
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


@dataclass(frozen=True)
class Noise:
    """The spread between two packings, which are equal but for rounding.

    Attributes:
        pairs: scored again, chosen by the hash of their prompts.
        packing: how, in words.
        margin: root mean square of the change of a margin, in units of the reward.
        largest: the largest change of a mean log-prob, nats per token.
        accuracy: share of the pairs whose preference changed.
    """

    pairs: int
    packing: str
    margin: float
    largest: float
    accuracy: float

    def explains(self, comparison: ModelComparison) -> dict[str, bool | None]:
        """Whether each difference is no larger than this; None where it was not measured."""
        margin = comparison.margin
        return {
            "accuracy": abs(comparison.accuracy.value) <= self.accuracy,
            "margin": None if margin is None else abs(margin.value) <= self.margin,
        }


@stage("measuring the rounding")
def measure_noise(opened: OpenModel, pairs: Sequence[EncodedPair], scores: PairScores, objective: Objective) -> Noise:
    """Score some of the pairs again: in padded rows where prompts were shared, else one pair at a time.

    `scores` is what came out for the pairs, of which there is at least one.
    """
    at = probe(pairs, _MOST_SCORED_AGAIN)
    some, first = [pairs[i] for i in at], scores.select(at)
    shared = opened.check.packing == "shared_prefix"
    budget = opened.budget if shared else int(tokens_of_each(some, "padded").min())
    with opened.policy.packed("padded"):
        again = score_pairs(opened.policy, some, opened.accelerator, budget)
    chosen, rejected = again.chosen - first.chosen, again.rejected - first.rejected
    return Noise(
        pairs=len(at),
        packing="padded rows" if shared else "one pair at a time",
        margin=objective.reward(float(np.sqrt(np.mean((chosen - rejected) ** 2)))),
        largest=float(np.abs([chosen, rejected]).max()),
        accuracy=float(np.mean(again.correct != first.correct)),
    )


def score_tokens(opened: OpenModel, pairs: Sequence[EncodedPair], loss: LossRecipe) -> list[dict[str, Any]]:
    """Score pairs as a training step does, one at a time, and keep every token's log-prob.

    Returns:
        Of each pair `loss`, `margin` (reward of the chosen response less that of the rejected one), and of `chosen` and
        `rejected`: `logps` (nats, a scored token each), their sum `logp_sum`, `logp_mean` m(y|x), and `reward`.
    """
    scores = []
    with stage("scoring pairs", len(pairs)) as scoring:
        for pair in pairs:
            packed = pack([pair], opened.accelerator.device)
            with torch.no_grad(), opened.accelerator.autocast():
                logps = opened.policy(packed)
                means = means_of(logps, packed)
            terms = Objective(loss).terms(*means)
            rewards = terms.rewards_chosen.item(), terms.rewards_rejected.item()
            scored: dict[str, Any] = {"loss": terms.losses.item(), "margin": rewards[0] - rewards[1]}
            each = zip(logps.split(packed.response_lengths[0].tolist()), means, rewards, strict=True)
            for name, (of_tokens, mean, reward) in zip(("chosen", "rejected"), each, strict=True):
                values = of_tokens.tolist()
                scored[name] = {"logps": values, "logp_sum": sum(values), "logp_mean": mean.item(), "reward": reward}
            scores.append(scored)
            scoring.advance()
    return scores
