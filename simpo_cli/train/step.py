"""One optimizer step: the gradient of all its pairs, however they are cut up, and the sums behind its numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from simpo_cli.data.pair import EncodedPair
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy
from simpo_cli.objective import gradient_weight, terms_under
from simpo_cli.recipe.schema import LossRecipe
from simpo_cli.train.not_finite import UNMOVED, NotFiniteError, require_finite_losses
from simpo_cli.train.out_of_memory import memory_for


@dataclass(frozen=True, slots=True)
class StepSums:
    """Sums over the pairs of a step; divided by `pairs` they are the step's means."""

    pairs: int
    loss: float
    rewards_chosen: float
    rewards_rejected: float
    correct: float  # ties count one half
    past_target: float
    logps_chosen: float
    logps_rejected: float
    gradient_weight: float
    tokens: int  # every prompt counted once


_SUMMED = (
    "loss",
    "rewards_chosen",
    "rewards_rejected",
    "correct",
    "past_target",
    "logps_chosen",
    "logps_rejected",
    "gradient_weight",
)
_FREE_MEMORY = (
    "Lower train.tokens_per_microbatch, which changes no step, or data.max_length; model.gradient_checkpointing: true "
    "and model.lora need less memory, too."
)


def accumulate(
    policy: Policy,
    pairs: Sequence[EncodedPair],
    microbatches: Iterable[Sequence[int]],
    *,
    loss: LossRecipe,
    accelerator: Accelerator,
    step: int,
    reseed: int | None = None,
) -> StepSums:
    """Add the gradient of the step's mean loss to the parameters, one micro-batch at a time.

    Each micro-batch contributes sum(losses) / (pairs of the step), so the gradient is that of the mean over the step's
    pairs whatever the cut.

    Args:
        policy: in training mode, its gradients empty.
        pairs: the pairs of the step.
        microbatches: positions within `pairs`, each once.
        loss: the objective.
        accelerator: device, autocast, backward.
        step: number of the step (0 is the first), for messages.
        reseed: seeds torch for each micro-batch where an adapter has dropout; None where nothing is random.

    Raises:
        NotFiniteError: a loss or a log-prob is not finite; the pairs are named, and nothing has moved.
        NoMemoryError: a micro-batch does not fit in memory; nothing has moved.
    """
    sums = torch.zeros(len(_SUMMED), dtype=torch.float64)
    for number, positions in enumerate(microbatches):
        if reseed is not None:
            torch.manual_seed((reseed * 1_000_003 + step) * 1_000_003 + number)
        batch = [pairs[i] for i in positions]
        with memory_for(f"step {step + 1}: {_described(batch)}", _FREE_MEMORY):
            sums += _one_microbatch(policy, batch, len(pairs), loss, accelerator, step)
    totals = dict(zip(_SUMMED, sums.tolist(), strict=True))
    return StepSums(pairs=len(pairs), tokens=sum(pair.num_tokens for pair in pairs), **totals)


def _one_microbatch(
    policy: Policy, batch: Sequence[EncodedPair], pairs: int, loss: LossRecipe, accelerator: Accelerator, step: int
) -> torch.Tensor:
    """Add its gradient, and return its sums in the order of `_SUMMED`, float64 on the CPU."""
    packed = pack(batch, accelerator.device)
    with accelerator.autocast():
        chosen, rejected = policy.response_means(packed)
    terms = terms_under(loss, chosen, rejected)
    require_finite_losses(policy, batch, (terms.losses, chosen, rejected), f"step {step + 1}")
    accelerator.backward(terms.losses.sum() / pairs)
    margins = terms.rewards_chosen - terms.rewards_rejected
    return torch.stack(
        [
            terms.losses.detach().sum(),
            terms.rewards_chosen.sum(),
            terms.rewards_rejected.sum(),
            (margins > 0).sum() + 0.5 * (margins == 0).sum(),
            (margins > loss.margin).sum(),
            chosen.detach().sum(),
            rejected.detach().sum(),
            gradient_weight(loss, margins).sum(),
        ]
    ).to("cpu", torch.float64)


def _described(batch: Sequence[EncodedPair]) -> str:
    """A micro-batch as a message names it."""
    longest = max(batch, key=lambda pair: pair.num_tokens)
    tokens = sum(pair.num_tokens for pair in batch)
    pairs = "1 pair" if len(batch) == 1 else f"{len(batch)} pairs"
    return (
        f"a micro-batch of {tokens:,} tokens ({pairs}, the longest of {longest.num_tokens:,} tokens: {longest.where})"
    )


def clip_gradients(policy: nn.Module, most: float, step: int) -> float:
    """Scale the gradients down to a norm of at most `most` (0: leave them) and return the norm they had.

    Raises:
        NotFiniteError: the norm is not finite; the weights have not moved.
    """
    parameters = [p for p in policy.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not bool(torch.isfinite(norm)):
        raise NotFiniteError(f"step {step + 1}: the gradient is not finite.", UNMOVED)
    if most > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return float(norm)
