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
from torch.utils.checkpoint import checkpoint

_CHUNK_ELEMENTS = 1 << 24  # logits held at once: 64 MB as float32
_FEWEST_ROWS = 128  # below this the products are slow


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
    chunk = max(_FEWEST_ROWS, _CHUNK_ELEMENTS // vocab_size)
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

    With h the state, W the weight, p the softmax of the logits and g the gradient of log p(y):

        d/dh = g (W[y] - p W)        d/dW = sum over positions of (onehot(y) - p) (g h)'

    so the probabilities never have to be scaled: what is small is, the product or the states. One array of a chunk is
    all that is held, made once and written again for every chunk; the weight's gradient is added up in place.
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
        with _no_autocast(states):
            workspace = _Workspace(states, weight, bias, scale, chunk)
            for at in _chunks(len(targets), chunk):
                logps[at] = workspace.log_softmax(at).gather(1, targets[at, None]).squeeze(1)
        ctx.save_for_backward(states, targets, weight, bias)
        ctx.scale, ctx.chunk = scale, chunk
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, targets, weight, bias = ctx.saved_tensors
        needs_states, _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        wide = gradient.dtype
        grad_states = torch.empty_like(states) if needs_states else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if needs_bias else None
        with _no_autocast(states):
            workspace = _Workspace(states, weight, bias, ctx.scale, ctx.chunk)
            for at in _chunks(len(targets), ctx.chunk):
                error = workspace.error(at, targets[at]).to(states.dtype)
                g = -gradient[at, None]
                if grad_states is not None:
                    grad_states[at] = (error @ weight) * g
                if grad_weight is not None:
                    weighted = (states[at] * g).to(states.dtype)
                    if wide == states.dtype:
                        grad_weight.addmm_(error.T, weighted)
                    else:
                        grad_weight += error.T @ weighted
                if grad_bias is not None:
                    grad_bias += (error * g).sum(0)
        return (
            grad_states,
            None,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
        )


class _Workspace:
    """An array of (chunk, V), and what is computed in it. What a method returns is overwritten by the next call.

    Logits narrower than float32 have an array of their own.
    """

    def __init__(self, states: Tensor, weight: Tensor, bias: Tensor | None, scale: LogitScale, chunk: int) -> None:
        self._states, self._weight, self._bias, self._scale = states, weight, bias, scale
        rows = min(chunk, len(states))
        self._product = states.new_empty(rows, len(weight))
        wide = _wide(states.dtype)
        self._result = self._product if wide == states.dtype else torch.empty_like(self._product, dtype=wide)

    def _logits(self, at: slice) -> Tensor:
        rows = self._states[at]
        product = self._product[: len(rows)]
        if self._bias is None:
            torch.mm(rows, self._weight.T, out=product)
        else:
            torch.addmm(self._bias, rows, self._weight.T, out=product)
        return self._scale(product.to(self._result.dtype))

    def log_softmax(self, at: slice) -> Tensor:
        """(rows, V) log-probabilities."""
        logits = self._logits(at)
        return torch.log_softmax(logits, 1, out=self._result[: len(logits)])

    def error(self, at: slice, targets: Tensor) -> Tensor:
        """(rows, V): softmax less 1 at the target, times the slope of the logits' scaling."""
        logits = self._logits(at)
        error = torch.softmax(logits, 1, out=self._result[: len(logits)])
        error.scatter_add_(1, targets[:, None], error.new_full((len(targets), 1), -1.0))
        slope = self._scale.slope(logits)
        return error if slope is None else error.mul_(slope)


def _chunks(length: int, chunk: int) -> Iterator[slice]:
    for start in range(0, length, chunk):
        yield slice(start, min(length, start + chunk))


def _no_autocast(like: Tensor) -> AbstractContextManager[None]:
    """The types are settled before; autocast would cast the weight again for every chunk."""
    context: AbstractContextManager[None] = torch.autocast(like.device.type, enabled=False)
    return context
