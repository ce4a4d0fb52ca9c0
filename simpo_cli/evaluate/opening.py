"""A model made ready to score pairs: the way that `eval`, `inspect` and `stats --model` come to one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import fullest_microbatch, row_tokens_of_each, tokens_of_each
from simpo_cli.evaluate.score import PairScores, score_pairs
from simpo_cli.model.attention.support import why_not_shared
from simpo_cli.model.device import open_accelerator
from simpo_cli.model.fit import require_known_ids
from simpo_cli.model.load import Load, ModelSource, count_parameters, load_model, weights_dtype
from simpo_cli.model.memory import available_bytes, choose_budget, require_memory, scoring_need
from simpo_cli.model.policy import Policy
from simpo_cli.model.self_check import CheckPairs, SelfCheck, settle_packing
from simpo_cli.recipe.schema import Recipe


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
    need = scoring_need(
        source.text_config,
        count_parameters(recipe.model, source),
        weights=weights,
        compute=torch.bfloat16 if compute == "bf16" else torch.float32,
        longest_row=longest_row,
        device=accelerator.device,
        available=available_bytes(accelerator.device),
    )
    # two padded rows are never less than the pair with its prompt shared, so this fits however it turns out
    budget = choose_budget(need, accelerator.device, int(tokens_of_each(pairs, "padded").max()))
    require_memory(need, budget, adapters=True, checkpointing=True)
    policy = Policy(load(source, weights, accelerator.device)).eval()
    policy.requires_grad_(False)
    fullest = fullest_microbatch(pairs, budget, "shared_prefix")
    check = settle_packing(policy, recipe.model.attention, why_padded, CheckPairs.of(pairs, fullest, trained=False))
    return OpenModel(policy, accelerator, budget, check)
