"""RMSNorm with a backward pass of its own.

Written as transformers does, a norm is six operations forward and a dozen backward, each of which reads and writes the
whole of the hidden states, and some of which keep them. By hand it is three and five, and keeps only its input. With
r = 1 / sqrt(mean(x^2) + eps), w the weight and g the gradient of the output:

    y = r x w        dx = r g w - x r^3 (g x . w) / H        dw = sum over rows of r g x

(Zhang and Sennrich 2019, arXiv:1910.07467.)
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def epsilon_of(own: nn.Module) -> float | None:
    """What a module adds to the mean square, where it looks like an RMSNorm; else None."""
    eps = getattr(own, "variance_epsilon", getattr(own, "eps", None))
    if (
        not type(own).__name__.endswith("RMSNorm")
        or [(name, p.dim()) for name, p in own.named_parameters()] != [("weight", 1)]
        or not isinstance(eps, float)
    ):
        return None
    return eps


def fused_norm(own: nn.Module) -> list["FusedRMSNorm"]:
    """What may compute the same as a module: weight times the normed states, or 1 + weight times them, as Gemma has."""
    eps = epsilon_of(own)
    return [] if eps is None else [FusedRMSNorm(own, eps, offset) for offset in (0.0, 1.0)]


class FusedRMSNorm(nn.Module):
    """A norm over the last dimension of float32 states."""

    def __init__(self, own: nn.Module, eps: float, offset: float) -> None:
        super().__init__()
        self.weight: nn.Parameter = own.get_parameter("weight")
        self._eps, self._offset = eps, offset
        self._own = (own,)  # in a tuple, so that its parameter is not counted twice

    def forward(self, states: Tensor) -> Tensor:
        if states.dtype != self.weight.dtype:
            normed: Tensor = self._own[0](states)
            return normed
        scale: Tensor = self.weight + self._offset if self._offset else self.weight
        fused: Tensor = _RMSNorm.apply(states, scale, self._eps)  # type: ignore[no-untyped-call]
        return fused


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = states.reshape(-1, states.shape[-1])
        norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        inverse = norms.square_().div_(rows.shape[1]).add_(eps).rsqrt_()
        ctx.save_for_backward(rows, inverse, weight)
        return torch.mul(rows, inverse).mul_(weight).view(states.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, inverse, weight = ctx.saved_tensors
        flat = gradient.reshape(rows.shape)
        product = flat * rows
        along = torch.mv(product, weight)[:, None].mul_(inverse.pow(3)).div_(-rows.shape[1])
        grad_weight = torch.mv(product.T, inverse[:, 0]) if ctx.needs_input_grad[1] else None
        grad_states = torch.mul(flat, inverse, out=product).mul_(weight).addcmul_(rows, along)
        return grad_states.view(gradient.shape), grad_weight, None
