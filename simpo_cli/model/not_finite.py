"""Numbers that are not finite: found before they move a weight or reach a file, with the records that made them.

In every step the log-probs and losses are looked at before the backward pass, the gradient before the optimizer, and
the weights after it; weights and moments once more before they are saved.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn, optim

from simpo_cli.data.pair import EncodedPair
from simpo_cli.distributed import ranks
from simpo_cli.distributed.gradients import total_norm
from simpo_cli.distributed.sharded import is_sharded, local
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy, trainable
from simpo_cli.model.tensor_file import plain_parts
from simpo_cli.objective import Objective
from simpo_cli.recipe.schema import LossRecipe

SHOWN = 10
_REMEDY = "A lower learning rate, or train.precision: fp32, usually mends this."
UNMOVED = f"No weight has moved in this step, and what was saved before it is kept. {_REMEDY}"


class NotFiniteError(UserError):
    """A number is not finite (exit code 5); nothing of it was saved.

    Attributes:
        records: places of the records whose pairs made it; empty where no pair did.
    """

    def __init__(self, problem: str, fix: str, records: Sequence[str] = ()) -> None:
        super().__init__(problem, fix, exit_code=ExitCode.NUMBERS)
        self.records = list(records)


def require_finite_losses(
    policy: Policy, pairs: Sequence[EncodedPair], numbers: Iterable[Tensor], moment: str, what: str = "the loss"
) -> None:
    """Stop where a number of a pair is not finite.

    Args:
        policy: whose weights are looked at too: where they are not finite, no pair is to blame.
        pairs: the P pairs of the micro-batch, or of the evaluation.
        numbers: tensors of shape (P,).

    Raises:
        NotFiniteError: one is not finite.
    """
    finite = torch.stack([torch.isfinite(values) for values in numbers]).all(0)
    if bool(finite.all()):
        return
    rows = [pair.where for pair, fine in zip(pairs, finite.tolist(), strict=True) if not fine]
    if broken := _not_finite(policy.named_parameters()):
        raise NotFiniteError(
            f"{moment}: {_named(broken)} of the weights is not finite, and so is {what} of {_counted(rows)}: "
            f"{listed(rows)}.",
            "No pair can make this: the memory, or the start model, is damaged. What was saved before is kept.",
            rows,
        )
    raise NotFiniteError(f"{moment}: {what} of {_counted(rows)} is not finite: {listed(rows)}.", UNMOVED, rows)


def gradient_error(
    policy: Policy, pairs: Sequence[EncodedPair], step: int, *, loss: LossRecipe, accelerator: Accelerator
) -> NotFiniteError:
    """The error of a gradient that is not finite: every pair of the step is tried alone, to find which made it.

    The gradients are empty afterwards.
    """
    rows = []
    for pair in pairs:
        policy.zero_grad()
        packed = pack([pair], accelerator.device)
        with accelerator.autocast():
            chosen, rejected = policy.response_means(packed)
        accelerator.backward(Objective(loss).terms(chosen, rejected).losses.sum() / len(pairs))
        gradients = ((name, p.grad) for name, p in policy.named_parameters() if p.grad is not None)
        if _not_finite(gradients):
            rows.append(pair.where)
    policy.zero_grad()
    who = f"it comes from {_counted(rows)}: {listed(rows)}" if rows else "of no pair alone, only of their sum"
    return NotFiniteError(f"step {step + 1}: the gradient is not finite; {who}.", UNMOVED, rows)


def require_finite_weights(
    policy: nn.Module, optimizer: optim.Optimizer, pairs: Sequence[EncodedPair], step: int
) -> None:
    """Stop where the update of step `step` (0 is the first) has made a weight that is not finite.

    Raises:
        NotFiniteError: names the weight, the optimizer's state if that is the cause, and the pairs of the step.
    """
    weights = trainable(policy)
    broken = _not_finite(weights.items())
    if not broken:
        return
    moments = _not_finite(_moments(optimizer, weights))
    cause = f"so is {_named(moments)} of the optimizer's state" if moments else "the loss and the gradient were finite"
    rows = [pair.where for pair in pairs]
    raise NotFiniteError(
        f"step {step + 1}: after the update {_named(broken)} of the weights is not finite, and {cause}; the pairs of "
        f"the step are {listed(rows)}.",
        f"This step is not saved, and what was saved before it is kept. {_REMEDY}",
        rows,
    )


def require_finite_state(policy: nn.Module, optimizer: optim.Optimizer, step: int) -> None:
    """Refuse to save weights or moments that are not finite after so many steps."""
    weights = trainable(policy)
    for what, broken in (
        ("the weights", _not_finite(weights.items())),
        ("the optimizer's state", _not_finite(_moments(optimizer, weights))),
    ):
        if broken:
            raise NotFiniteError(
                f"the state after step {step} is not saved: {_named(broken)} of {what} is not finite.",
                f"What was saved before is kept. {_REMEDY}",
            )


def require_finite_tensors(tensors: Iterable[tuple[str, Tensor]], what: str, fix: str) -> None:
    """Refuse tensors that are not finite."""
    if broken := _not_finite(tensors):
        raise NotFiniteError(f"{what}: {_named(broken)} is not finite.", fix)


def listed(rows: Sequence[str]) -> str:
    """The first places, and how many more there are."""
    more = len(rows) - SHOWN
    return ", ".join(rows[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of the tensors that hold something not finite, on any rank.

    Their norms say at once that there is none; a norm can overflow by itself, so then each is looked at.
    """
    named = [(name, tensor.detach()) for name, tensor in tensors if tensor.is_floating_point()]
    if not named or bool(torch.isfinite(total_norm([tensor for _, tensor in named]))):
        return []
    broken = [name for name, tensor in named if not bool(torch.isfinite(local(tensor)).all())]
    if any(is_sharded(tensor) for _, tensor in named):
        on_any = {name for of_rank in ranks.exchange(broken, "looking for what is not finite") for name in of_rank}
        broken = [name for name, _ in named if name in on_any]
    return broken


def _moments(optimizer: optim.Optimizer, weights: Mapping[str, nn.Parameter]) -> list[tuple[str, Tensor]]:
    return [
        (f"{part} of {name}", tensor)
        for name, parameter in weights.items()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
        for part, tensor in plain_parts(key, value).items()
    ]


def _named(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _counted(rows: Sequence[str]) -> str:
    return "1 pair" if len(rows) == 1 else f"{len(rows)} pairs"
