"""One optimizer step: the gradient of all its pairs, however they are cut up, and the sums behind its numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from simpo_cli.data.pair import EncodedPair
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy
from simpo_cli.objective import terms_under
from simpo_cli.recipe.schema import LossRecipe


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
    tokens: int  # every prompt counted once


_SUMMED = ("loss", "rewards_chosen", "rewards_rejected", "correct", "past_target", "logps_chosen", "logps_rejected")


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
        UserError: a loss is not finite (exit code 5); the pairs are named, and nothing has moved.
    """
    sums = torch.zeros(len(_SUMMED), dtype=torch.float64)
    for number, positions in enumerate(microbatches):
        if reseed is not None:
            torch.manual_seed((reseed * 1_000_003 + step) * 1_000_003 + number)
        packed = pack([pairs[i] for i in positions], accelerator.device)
        with accelerator.autocast():
            chosen, rejected = policy.response_means(packed)
        terms = terms_under(loss, chosen, rejected)
        _require_finite(terms.losses, [pairs[i] for i in positions], step)
        accelerator.backward(terms.losses.sum() / len(pairs))
        margins = terms.rewards_chosen - terms.rewards_rejected
        sums += torch.stack(
            [
                terms.losses.detach().sum(),
                terms.rewards_chosen.sum(),
                terms.rewards_rejected.sum(),
                (margins > 0).sum() + 0.5 * (margins == 0).sum(),
                (margins > loss.margin).sum(),
                chosen.detach().sum(),
                rejected.detach().sum(),
            ]
        ).to("cpu", torch.float64)
    totals = dict(zip(_SUMMED, sums.tolist(), strict=True))
    return StepSums(pairs=len(pairs), tokens=sum(pair.num_tokens for pair in pairs), **totals)


def _require_finite(losses: Tensor, pairs: Sequence[EncodedPair], step: int) -> None:
    finite = torch.isfinite(losses)
    if not bool(finite.all()):
        rows = [pair.where for pair, fine in zip(pairs, finite.tolist(), strict=True) if not fine]
        raise UserError(
            f"step {step + 1}: the loss of {len(rows)} pairs is not finite, such as {', '.join(rows[:3])}.",
            "No weight has moved in this step, and what was saved before it is kept. A lower learning rate, or "
            "train.precision: fp32, usually mends this.",
            exit_code=ExitCode.NUMBERS,
        )


def clip_gradients(policy: nn.Module, most: float, step: int) -> float:
    """Scale the gradients down to a norm of at most `most` (0: leave them) and return the norm they had.

    Raises:
        UserError: the norm is not finite (exit code 5); the weights have not moved.
    """
    parameters = [p for p in policy.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not bool(torch.isfinite(norm)):
        raise UserError(
            f"step {step + 1}: the gradient is not finite.",
            "No weight has moved in this step, and what was saved before it is kept. A lower learning rate, or "
            "train.precision: fp32, usually mends this.",
            exit_code=ExitCode.NUMBERS,
        )
    if most > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return float(norm)
