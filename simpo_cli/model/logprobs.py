"""Log-probabilities of given tokens without the whole of the logits.

Logits of one token take as many numbers as the vocabulary has entries; for a micro-batch they would outweigh everything
else. So the head works on a chunk of positions at a time, the log-softmax of the chunk is taken in float32, one number
a token is kept, and the backward pass computes the chunk again. Where the head is frozen the forward pass takes the
states' gradient along, up to the factor that the backward pass brings, and nothing is computed again.

What a plain head of V entries and states of width H holds at its peak, beside what its arguments take, with float32
log-probs and products in a type of b bytes:

    a chunk, of `chunk_rows` rows       V * (4 + b) bytes a row, V * 4 where b is 4; V * 4 more with a soft cap
    weights of another type             V * H * b, the weight in the type of the products: in each pass, not in between
    a trained weight, backward pass     V * H * 4, its gradient, which becomes `weight.grad` where there is none yet
    states, N rows                      N * H * b, kept from forward to backward pass, and as much again in the latter

so 6 V H bytes in the backward pass of a head trained in bfloat16 from float32 weights (8 on a CPU, where a chunk's part
of the gradient is a product of its own), and no V H for a frozen head in the type of the products.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from simpo_cli.model.widened import WidenedLinear, product_dtype

_CHUNK_ELEMENTS = 1 << 24  # logits held at once on a CPU: 64 MB as float32
_FEWEST_ROWS = 128  # below this the products are slow
_MOST_CUDA_ROWS = 4096  # above this the weight, read once a chunk, is a small part of what a chunk reads and writes
_FIXED_CUDA_ROWS = 2048
_SHARE_OF_FREE = 0.25  # of a card's free memory, the most that a chunk may take
_CALLED_BYTES = 20  # a logit of a chunk whose head is called as a module: logits, gradients, and what is between


@dataclass(frozen=True, slots=True)
class LogitScale:
    """What a model does to its logits behind the head."""

    factor: float = 1.0  # multiplied in first (cohere: logit_scale; granite: 1 / logits_scaling)
    soft_cap: float | None = None  # then cap * tanh(logits / cap), as gemma2 has it; None for none

    def __call__(self, logits: Tensor) -> Tensor:
        if self.factor != 1.0:
            logits = logits * self.factor
        if self.soft_cap is not None:
            logits = self.soft_cap * torch.tanh(logits / self.soft_cap)
        return logits

    def apply_(self, logits: Tensor) -> None:
        """The same in place, without gradient."""
        if self.factor != 1.0:
            logits *= self.factor
        if self.soft_cap is not None:
            logits.div_(self.soft_cap).tanh_().mul_(self.soft_cap)

    def slope(self, scaled: Tensor) -> Tensor | float | None:
        """Derivative of the scaled logits with respect to the head's own, given the scaled ones; None where it is 1."""
        if self.soft_cap is not None:
            return (scaled / self.soft_cap).square_().neg_().add_(1).mul_(self.factor)
        return None if self.factor == 1.0 else self.factor


def logit_scale_of(config: Any) -> LogitScale:
    """Read a model's logit scaling from its (text) configuration."""
    factor = float(getattr(config, "logit_scale", None) or 1.0)
    if scaling := getattr(config, "logits_scaling", None):
        factor = 1.0 / float(scaling)
    return LogitScale(factor, getattr(config, "final_logit_softcapping", None))


def chunk_rows(device: torch.device, vocab_size: int, bytes_per_logit: int) -> int:
    """Positions whose logits are there together.

    On CUDA a power of two from 128 to 4,096 whose chunk takes at most a quarter of the free memory. Deterministic runs
    always take 2,048: the order of a sum may not depend on what else is on the card.

    Args:
        bytes_per_logit: what a chunk holds for each of its logits.
    """
    most = most_chunk_rows(device, vocab_size)
    if device.type != "cuda":
        return most
    if torch.are_deterministic_algorithms_enabled():
        return _FIXED_CUDA_ROWS
    fitting = int(_SHARE_OF_FREE * _free_bytes(device)) // (bytes_per_logit * vocab_size)
    return max(_FEWEST_ROWS, min(most, 1 << fitting.bit_length() >> 1))


def most_chunk_rows(device: torch.device, vocab_size: int) -> int:
    """What `chunk_rows` never goes beyond, whatever is free."""
    return _MOST_CUDA_ROWS if device.type == "cuda" else max(_FEWEST_ROWS, _CHUNK_ELEMENTS // vocab_size)


def _free_bytes(device: torch.device) -> int:
    """What can still be allocated on a card: free memory, and what torch keeps of freed tensors. Waits for nothing."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def plain_bytes_per_logit(products: torch.dtype, scale: LogitScale) -> int:
    """What a chunk of a plain linear head holds for each logit: see the table above."""
    wide = _wide(products)
    narrow = 0 if products == wide else products.itemsize
    return narrow + wide.itemsize * (1 if scale.soft_cap is None else 2)


def token_logprobs(states: Tensor, targets: Tensor, head: nn.Module, scale: LogitScale, vocab_size: int) -> Tensor:
    """log p(target | states) of each position.

    Args:
        states: (N, H) hidden states, each before the token it predicts.
        targets: (N,) int64 ids.
        head: the model's output head; called as a module unless it is a plain linear layer, so that hooks and adapters
            on it count.
        scale: what the model does to its logits.

    Returns:
        (N,) float32, or float64 where the model computes in it.
    """
    if _is_plain_linear(head):
        states = states.to(_product_dtype(states, head.weight))
        chunk = chunk_rows(states.device, vocab_size, plain_bytes_per_logit(states.dtype, scale))
        is_frozen = not head.weight.requires_grad and (head.bias is None or not head.bias.requires_grad)
        ahead = is_frozen and states.requires_grad and torch.is_grad_enabled()
        logps: Tensor = _LinearLogProbs.apply(states, targets, head.weight, head.bias, scale, chunk, ahead)  # type: ignore[no-untyped-call]
        return logps
    chunk = chunk_rows(states.device, vocab_size, _CALLED_BYTES)
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
    return type(head) in (nn.Linear, WidenedLinear) and type(head.weight) is nn.Parameter and not has_hooks(head)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module does something beside its class's forward."""
    return "forward" in vars(module) or any(
        (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    )


def _product_dtype(states: Tensor, weight: Tensor) -> torch.dtype:
    """What a linear layer would compute in: autocast's type when that is on, else the weight's or a faster one."""
    device = states.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return product_dtype(weight.dtype, weight.device)


class _LinearLogProbs(torch.autograd.Function):
    """The chunks of a plain linear head with a backward pass of their own.

    With h the state, W the weight, p the softmax of the logits and g the gradient of log p(y):

        d/dh = g (W[y] - p W)        d/dW = sum over positions of (onehot(y) - p) (g h)'

    so the probabilities never have to be scaled: what is small is, the product or the states. The arrays of a chunk are
    made once and written again for every chunk; the weight's gradient is added up in place, in float32 or wider, which
    is also what it leaves in. With `ahead` the forward pass keeps W[y] - p W of every position in place of its state:
    two products where forward and backward pass would take three.
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
        ahead: bool,
    ) -> Tensor:
        logps = states.new_empty(len(targets), dtype=_wide(states.dtype))
        slopes = torch.empty_like(states) if ahead else None
        with _no_autocast(states):
            workspace = _Workspace(states, weight, bias, scale, chunk)
            for at in _chunks(len(targets), chunk):
                workspace.take(at, with_slope=ahead)
                logps[at] = workspace.log_softmax().gather(1, targets[at, None]).squeeze(1)
                if slopes is not None:
                    torch.mm(workspace.error_of_log_softmax(targets[at]), workspace.weight, out=slopes[at]).neg_()
        ctx.ahead, ctx.scale, ctx.chunk = ahead, scale, chunk
        ctx.save_for_backward(*((slopes,) if ahead else (states, targets, weight, bias)))
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.ahead:
            (slopes,) = ctx.saved_tensors
            # the product is taken in the wider type of the two, and only its result is rounded
            return torch.mul(slopes, gradient[:, None], out=torch.empty_like(slopes)), *[None] * 6
        states, targets, weight, bias = ctx.saved_tensors
        needs_states, _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        wide = gradient.dtype
        grad_states = torch.empty_like(states) if needs_states else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if needs_bias else None
        with _no_autocast(states):
            workspace = _Workspace(states, weight, bias, ctx.scale, ctx.chunk)
            for at in _chunks(len(targets), ctx.chunk):
                workspace.take(at, with_slope=True)
                error = workspace.error(targets[at])
                g = -gradient[at, None]
                if grad_states is not None:
                    grad_states[at] = (error @ workspace.weight) * g
                if grad_weight is not None:
                    _add_product(grad_weight, error.T, (states[at] * g).to(states.dtype))
                if grad_bias is not None:
                    grad_bias += (error * g).sum(0)
        return (
            grad_states,
            None,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *[None] * 3,
        )


def _has_wide_products(factor: Tensor) -> bool:
    """Whether matrices of this type can be multiplied into float32 without rounding to their own: on CUDA alone."""
    return factor.is_cuda and factor.dtype in (torch.bfloat16, torch.float16)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, for a total of float32 or wider."""
    if _has_wide_products(left):
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    elif total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


class _Workspace:
    """Arrays of (chunk, V), and what is computed in them. What a method returns is overwritten by the next call.

    Products narrower than float32 have an array of their own, which the error is rounded into.

    Attributes:
        weight: (V, H) in the type of the states.
    """

    def __init__(self, states: Tensor, weight: Tensor, bias: Tensor | None, scale: LogitScale, chunk: int) -> None:
        self.weight = weight.to(states.dtype)
        self._states, self._bias, self._scale = states, None if bias is None else bias.to(states.dtype), scale
        rows = min(chunk, len(states))
        self._narrow_rows = states.new_empty(rows, len(weight))
        wide = _wide(states.dtype)
        is_wide = wide == states.dtype
        self._wide_rows = self._narrow_rows if is_wide else torch.empty_like(self._narrow_rows, dtype=wide)
        self._slope: Tensor | float | None = None

    def take(self, at: slice, *, with_slope: bool) -> None:
        """Compute the logits of these positions, and the slope of their scaling for `error`."""
        rows = self._states[at]
        self._slope = None  # a chunk's is let go before the next one's is made
        self._narrow, self._logits = self._narrow_rows[: len(rows)], self._wide_rows[: len(rows)]
        if _has_wide_products(rows):
            torch.mm(rows, self.weight.T, out_dtype=self._logits.dtype, out=self._logits)
            if self._bias is not None:
                self._logits += self._bias
        else:
            if self._bias is None:
                torch.mm(rows, self.weight.T, out=self._narrow)
            else:
                torch.addmm(self._bias, rows, self.weight.T, out=self._narrow)
            if self._logits is not self._narrow:
                self._logits.copy_(self._narrow)
        self._scale.apply_(self._logits)
        self._slope = self._scale.slope(self._logits) if with_slope else None

    def log_softmax(self) -> Tensor:
        """(rows, V) log-probabilities, in place of the logits."""
        return torch.log_softmax(self._logits, 1, out=self._logits)

    def error_of_log_softmax(self, targets: Tensor) -> Tensor:
        """`error` behind `log_softmax`."""
        return self._error(self._logits.exp_(), targets)

    def error(self, targets: Tensor) -> Tensor:
        """(rows, V) in the type of the states: softmax less 1 at the target, times the slope of the logits' scaling."""
        return self._error(torch.softmax(self._logits, 1, out=self._logits), targets)

    def _error(self, error: Tensor, targets: Tensor) -> Tensor:
        error.scatter_add_(1, targets[:, None], error.new_full((len(targets), 1), -1.0))
        if self._slope is not None:
            error *= self._slope
        return error if error.dtype == self._narrow.dtype else self._narrow.copy_(error)


def _chunks(length: int, chunk: int) -> Iterator[slice]:
    for start in range(0, length, chunk):
        yield slice(start, min(length, start + chunk))


def _no_autocast(like: Tensor) -> AbstractContextManager[None]:
    """The types are known here; autocast would cast the weight again for every chunk."""
    context: AbstractContextManager[None] = torch.autocast(like.device.type, enabled=False)
    return context
