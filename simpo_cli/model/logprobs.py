"""Log-probabilities of given tokens without the whole of the logits.

Logits of one token take as many numbers as the vocabulary has entries; for a micro-batch they would outweigh everything
else. So the head works on a chunk of positions at a time, the log-softmax of the chunk is taken in float32, one number
a token is kept, and the backward pass computes the chunk again.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

_CHUNK_ELEMENTS = 1 << 24  # logits held at once: 64 MB as float32


@dataclass(frozen=True, slots=True)
class LogitScale:
    """What a model does to its logits behind the head.

    Attributes:
        factor: multiplied in first (cohere: logit_scale; granite: 1 / logits_scaling).
        soft_cap: then cap * tanh(logits / cap), as gemma2 has it; None for none.
    """

    factor: float = 1.0
    soft_cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        if self.factor != 1.0:
            logits = logits * self.factor
        if self.soft_cap is not None:
            logits = self.soft_cap * torch.tanh(logits / self.soft_cap)
        return logits

    def slope(self, scaled: Tensor) -> Tensor | float | None:
        """Derivative of the scaled logits with respect to the head's own, given the scaled ones; None where it is 1."""
        if self.soft_cap is not None:
            return (1 - (scaled / self.soft_cap).square()) * self.factor
        return None if self.factor == 1.0 else self.factor


def logit_scale_of(config: Any) -> LogitScale:
    """Read a model's logit scaling from its (text) configuration."""
    factor = float(getattr(config, "logit_scale", None) or 1.0)
    if scaling := getattr(config, "logits_scaling", None):
        factor = 1.0 / float(scaling)
    return LogitScale(factor, getattr(config, "final_logit_softcapping", None))


def token_logprobs(states: Tensor, targets: Tensor, head: nn.Module, scale: LogitScale, vocab_size: int) -> Tensor:
    """log p(target | states) of each position.

    Args:
        states: (N, H) hidden states, each before the token it predicts.
        targets: (N,) int64 ids.
        head: the model's output head; called as a module unless it is a plain linear layer, so that hooks and adapters
            on it count.
        scale: what the model does to its logits.
        vocab_size: number of logits of a position, which sets the chunk.

    Returns:
        (N,) float32, or float64 where the model computes in it.
    """
    chunk = max(1, _CHUNK_ELEMENTS // vocab_size)
    if _is_plain_linear(head):
        states, weight, bias = _compute_dtype(states, head.weight, head.bias)
        logps: Tensor = _LinearLogProbs.apply(states, targets, weight, bias, scale, chunk)  # type: ignore[no-untyped-call]
        return logps
    step: Callable[..., Tensor] = _chunk_logprobs
    pieces = []
    for start in range(0, len(targets), chunk):
        arguments = (states[start : start + chunk], targets[start : start + chunk], head, scale)
        if torch.is_grad_enabled():
            pieces.append(checkpoint(step, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            pieces.append(step(*arguments))
    return torch.cat(pieces)


def _chunk_logprobs(states: Tensor, targets: Tensor, head: nn.Module, scale: LogitScale) -> Tensor:
    logits = head(states)
    logits = scale(logits.to(_wide(logits.dtype)))
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type that log-probabilities are computed in: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def _is_plain_linear(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a call of the head is a product with its weight and no more: no hook, adapter or sharded tensor."""
    return (
        type(head) is nn.Linear
        and type(head.weight) is nn.Parameter
        and "forward" not in vars(head)
        and not any((head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks))
    )


def _compute_dtype(states: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a linear layer would compute in: autocast's type when that is on, else the weight's."""
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return states.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class _LinearLogProbs(torch.autograd.Function):
    """The chunks of a plain linear head with a backward pass of their own.

    The forward pass keeps the normaliser of each position, so the backward pass makes the probabilities from the logits
    in place: one array of a chunk is all that it holds, and the weight's gradient is added up in one array.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        targets: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: LogitScale,
        chunk: int,
    ) -> Tensor:
        wide = _wide(states.dtype)
        logps = states.new_empty(len(targets), dtype=wide)
        normalisers = torch.empty_like(logps)
        with _no_autocast(states):
            for at in _chunks(len(targets), chunk):
                logits = scale(linear(states[at], weight, bias).to(wide))
                torch.logsumexp(logits, dim=1, out=normalisers[at])
                logps[at] = logits.gather(1, targets[at, None]).squeeze(1) - normalisers[at]
        ctx.save_for_backward(states, targets, weight, bias, normalisers)
        ctx.scale, ctx.chunk = scale, chunk
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, targets, weight, bias, normalisers = ctx.saved_tensors
        needs_states, _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        wide = normalisers.dtype
        grad_states = torch.empty_like(states) if needs_states else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if needs_bias else None
        with _no_autocast(states):
            for at in _chunks(len(targets), ctx.chunk):
                logits = ctx.scale(linear(states[at], weight, bias).to(wide))
                slope = ctx.scale.slope(logits)
                # d log p(y) / d logit v = [v is y] - p(v)
                error = logits.sub_(normalisers[at, None]).exp_().mul_(-gradient[at, None])
                error.scatter_add_(1, targets[at, None], gradient[at, None])
                if slope is not None:
                    error *= slope
                narrow = error.to(states.dtype)
                if grad_states is not None:
                    grad_states[at] = narrow @ weight
                if grad_weight is not None:
                    if wide == states.dtype:
                        grad_weight.addmm_(narrow.T, states[at])
                    else:
                        grad_weight += narrow.T @ states[at]
                if grad_bias is not None:
                    grad_bias += error.sum(0)
        return (
            grad_states,
            None,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
        )


def _chunks(length: int, chunk: int) -> Iterator[slice]:
    for start in range(0, length, chunk):
        yield slice(start, min(length, start + chunk))


def _no_autocast(like: Tensor) -> AbstractContextManager[None]:
    """The types are settled before; autocast would cast the weight again for every chunk."""
    context: AbstractContextManager[None] = torch.autocast(like.device.type, enabled=False)
    return context
