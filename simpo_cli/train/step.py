"""One optimizer step: the gradient of all its pairs, however they are cut up, and the sums behind its numbers."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from simpo_cli.data.pair import EncodedPair
from simpo_cli.distributed import ranks
from simpo_cli.distributed.gradients import reduce_gradients, total_norm
from simpo_cli.distributed.sharded import is_sharded, local
from simpo_cli.model.not_finite import NotFiniteError, gradient_error, require_finite_losses
from simpo_cli.model.out_of_memory import memory_for
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy, trainable
from simpo_cli.model.shares import Failure, Numbers, Share
from simpo_cli.objective import Objective
from simpo_cli.recipe.schema import LossRecipe
from simpo_cli.run.stop import StopRequest


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
    grad_norm: float  # no sum: of the step's whole gradient, before it is clipped


FREE_MEMORY = "Lower data.max_length; model.gradient_checkpointing: true and model.lora need less memory, too."


def accumulate(
    policy: Policy,
    pairs: Sequence[EncodedPair],
    share: Share,
    *,
    loss: LossRecipe,
    accelerator: Accelerator,
    step: int,
    reseed: int | None = None,
    stop: StopRequest | None = None,
    advancing: Callable[[Iterable[Sequence[int]]], Iterable[Sequence[int]]] = iter,
) -> StepSums:
    """Add the gradient of the step's mean loss to the parameters, one micro-batch at a time.

    Each micro-batch contributes sum(losses) / (pairs of the step), so the gradient is that of the mean over the step's
    pairs whatever the cut, and however many ranks there are, whose gradients are added up at the end. Kernels are
    launched and not waited for: the next micro-batch is packed while this one runs, and what a step comes to is read
    once, at its end.

    Args:
        policy: in training mode, its gradients empty.
        pairs: the P pairs of the step, of all ranks.
        share: what this rank computes of them.
        loss: the objective.
        accelerator: device, autocast, backward.
        step: number of the step (0 is the first), for messages.
        reseed: seeds torch for each micro-batch where an adapter has dropout; None where nothing is random.
        stop: signals, which are looked at between micro-batches.
        advancing: goes through the micro-batches, and tells somebody how far it is.

    Raises:
        NotFiniteError: a loss, a log-prob or the gradient is not finite; the pairs are named, nothing has moved, and
            the gradients are empty.
        OutOfMemoryError: a micro-batch does not fit in memory, of this rank or another; nothing has moved.
        Stopped: a signal came, to this rank or another.
    """
    is_lockstep, moment = is_sharded(policy), f"step {step + 1}"
    weights = list(trainable(policy).values())
    # what is sharded is averaged over the ranks, and a sum is wanted
    scale = ranks.world_size() if any(map(is_sharded, weights)) else 1
    numbers = Numbers(5, len(pairs), accelerator.device)
    with Failure(stop, is_sharded=is_lockstep) as failure:
        for number, positions in enumerate(advancing(failure.between(share.microbatches)), share.first_number):
            if reseed is not None:
                torch.manual_seed((reseed * 1_000_003 + step) * 1_000_003 + number)
            batch = [pairs[i] for i in positions]
            with memory_for(f"{moment}: {_described(batch)}", FREE_MEMORY):
                numbers.add(positions, one_microbatch(policy, batch, len(pairs) / scale, loss, accelerator))
        for _ in range(share.idle):
            one_microbatch(policy, [pairs[share.shortest]], math.inf, loss, accelerator)
    if ranks.world_size() == 1:
        norm = total_norm([p.grad for p in policy.parameters() if p.grad is not None])
        in_order, [norm] = numbers.of_all(norm)
    else:
        flags = failure.flags(accelerator.device)
        had = flags.new_tensor([p.grad is not None for p in weights])
        in_order, [flags, had] = numbers.of_all(flags, had)
        failure.require_none(flags, moment)
        reduce_gradients(weights, (had > 0).tolist())
        norm = total_norm([p.grad for p in weights if p.grad is not None])
    losses, _, _, chosen, rejected = in_order
    grad_norm = float(norm)
    try:
        require_finite_losses(policy, pairs, (losses, chosen, rejected), moment)
        if not math.isfinite(grad_norm):
            raise gradient_error(policy, pairs, step, loss=loss, accelerator=accelerator)
    except NotFiniteError:
        policy.zero_grad()
        raise
    return _sums(in_order, grad_norm, sum(pair.num_tokens for pair in pairs), loss)


def _sums(numbers: Tensor, grad_norm: float, tokens: int, loss: LossRecipe) -> StepSums:
    """The sums of a step, from the (5, P) numbers of its pairs, see `one_microbatch`: float64 on the CPU."""
    losses, rewards_chosen, rewards_rejected, chosen, rejected = numbers
    margins = rewards_chosen - rewards_rejected
    return StepSums(
        pairs=len(losses),
        loss=float(losses.sum()),
        rewards_chosen=float(rewards_chosen.sum()),
        rewards_rejected=float(rewards_rejected.sum()),
        correct=float((margins > 0).sum() + 0.5 * (margins == 0).sum()),
        past_target=float((margins > loss.margin).sum()),
        logps_chosen=float(chosen.sum()),
        logps_rejected=float(rejected.sum()),
        gradient_weight=float(Objective(loss).gradient_weight(margins).sum()),
        tokens=tokens,
        grad_norm=grad_norm,
    )


def one_microbatch(
    policy: Policy, batch: Sequence[EncodedPair], divisor: float, loss: LossRecipe, accelerator: Accelerator
) -> Tensor:
    """Launch its forward and backward pass; (5, p) on the device: loss, both rewards, both mean log-probs.

    Args:
        divisor: of the losses: how many pairs the step has; inf for those that count for nothing.
    """
    packed = pack(batch, accelerator.device)
    with accelerator.autocast():
        chosen, rejected = policy.response_means(packed)
    terms = Objective(loss).terms(chosen, rejected)
    accelerator.backward(terms.losses.sum() / divisor)
    return torch.stack([terms.losses, terms.rewards_chosen, terms.rewards_rejected, chosen, rejected]).detach()


def _described(batch: Sequence[EncodedPair]) -> str:
    """A micro-batch as a message names it."""
    longest = max(batch, key=lambda pair: pair.num_tokens)
    tokens = sum(pair.num_tokens for pair in batch)
    pairs = "1 pair" if len(batch) == 1 else f"{len(batch)} pairs"
    return (
        f"a micro-batch of {tokens:,} tokens ({pairs}, the longest of {longest.num_tokens:,} tokens: {longest.where})"
    )


def clip_gradients(policy: nn.Module, most: float, *, norm: float) -> None:
    """Scale the gradients, whose norm is known, down to a norm of at most `most` (0: leave them)."""
    if 0 < most < norm:
        # torch looks at nothing but their gradients; of shards each rank scales its own
        parameters: Any = [SimpleNamespace(grad=local(p.grad)) for p in policy.parameters() if p.grad is not None]
        torch.nn.utils.clip_grads_with_norm_(parameters, most, torch.tensor(norm))
