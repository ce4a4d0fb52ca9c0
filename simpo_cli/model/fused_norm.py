"""RMSNorm with a backward pass of its own, in place of a model's own, on a CPU.

Written as transformers does, a norm is six operations forward and a dozen backward, each of which reads and writes the
whole of the hidden states and keeps some of them. By hand it is three and five, and keeps only its input. With
r = 1 / sqrt(mean(x^2) + eps), w the weight and g the gradient of the output:

    y = r x w        dx = r g w - x r^3 (g x . w) / H        dw = sum over rows of r g x

(Zhang and Sennrich 2019, arXiv:1910.07467.) A module is replaced only when it gives the same numbers on random rows.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_SAME = 1e-5


class FusedRMSNorm(nn.Module):
    """Stands where `own` stood, with the same parameter under the same name.

    Args:
        own: the norm that it computes.
        eps: its epsilon.
        offset: 1 where the norm multiplies by 1 + weight, as Gemma's do, else 0.
    """

    def __init__(self, own: nn.Module, eps: float, offset: float) -> None:
        super().__init__()
        self.weight: nn.Parameter = own.get_parameter("weight")
        self._eps, self._offset = eps, offset
        self._own = (own,)  # in a tuple, so that its parameter is not counted twice

    @property
    def own(self) -> nn.Module:
        return self._own[0]

    def forward(self, states: Tensor) -> Tensor:
        weight = self.weight
        if states.dtype != weight.dtype:
            normed: Tensor = self.own(states)
            return normed
        scale: Tensor = weight + self._offset if self._offset else weight
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


FusedNorms = list[tuple[nn.Module, str, FusedRMSNorm]]  # the module it is in, its name there, its replacement


def find_norms(model: nn.Module) -> FusedNorms:
    """Every RMSNorm of a model that can be replaced, with its replacement; nothing is replaced yet."""
    return [
        (parent, name, replacement)
        for parent in model.modules()
        for name, child in parent.named_children()
        if (replacement := _fused(child)) is not None
    ]


def fuse_norms(norms: FusedNorms) -> None:
    """Put the replacements in place."""
    for parent, name, replacement in norms:
        parent._modules[name] = replacement


def restore_norms(norms: FusedNorms) -> None:
    """Put the model's own norms back."""
    for parent, name, replacement in norms:
        parent._modules[name] = replacement.own


def _fused(norm: nn.Module) -> FusedRMSNorm | None:
    """What may stand for a module, or None when it is no such norm or does not give the same numbers."""
    weight = getattr(norm, "weight", None)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if (
        not type(norm).__name__.endswith("RMSNorm")
        or not isinstance(weight, nn.Parameter)
        or [name for name, _ in norm.named_parameters()] != ["weight"]
        or weight.dim() != 1
        or weight.device.type != "cpu"
        or weight.dtype != torch.float32  # wider ones are for tests, and transformers computes norms in float32
        or not isinstance(eps, float)
        or any((norm._forward_hooks, norm._forward_pre_hooks, norm._backward_hooks, norm._backward_pre_hooks))
    ):
        return None
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 3, len(weight), generator=generator).to(weight.dtype)
    with torch.no_grad():
        own = norm(rows)
        for offset in (0.0, 1.0):
            candidate = FusedRMSNorm(norm, eps, offset)
            if own.shape == rows.shape and torch.allclose(candidate(rows), own, rtol=_SAME, atol=_SAME):
                return candidate
    return None
