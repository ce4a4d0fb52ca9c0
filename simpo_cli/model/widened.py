"""Products with bfloat16 or float16 weights on a CPU whose own are slower than those of float32: widened for a moment.

Such a product is made of the same narrow factors, and is rounded once, at its end. On a server CPU with AVX2 alone, two
threads, (512, 1536) by (1536, 1536), torch's own took 216 ms in the forward pass and 2,826 ms for the gradient of the
states; with both factors widened they took 43 and 39 ms, the widening among it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from simpo_cli.model.backend import multiplies_in_bf16

_FEWEST_ROWS = 16  # for fewer, widening the weight takes longer than the slow product
_NARROW = (torch.bfloat16, torch.float16)


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type in which numbers of a type are multiplied fastest on a device."""
    is_slow = dtype in _NARROW and device.type == "cpu" and not multiplies_in_bf16("cpu")
    return torch.float32 if is_slow else dtype


def widen_products(model: nn.Module) -> None:
    """Have the plain linear layers of a model multiply as this module says, where that is faster."""
    for module in model.modules():
        if type(module) is not nn.Linear:
            continue
        if product_dtype(module.weight.dtype, module.weight.device) != module.weight.dtype:
            # as another class, and not by a function of the instance, which would go into copies
            module.__class__ = WidenedLinear


class WidenedLinear(nn.Linear):
    """A linear layer whose weight is float32 only while it is multiplied."""

    def forward(self, states: Tensor) -> Tensor:
        is_alike = states.dtype == self.weight.dtype and not torch.is_autocast_enabled(states.device.type)
        if not is_alike or states.numel() < _FEWEST_ROWS * self.in_features:
            return super().forward(states)
        product: Tensor = _WidenedProduct.apply(states, self.weight)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias


class _WidenedProduct(torch.autograd.Function):
    """states W' and its gradients, each product in float32."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(states if ctx.needs_input_grad[1] else None, weight)
        return linear(states.float(), weight.float()).to(states.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        states, weight = ctx.saved_tensors
        wide = gradient.float()
        grad_states = (wide @ weight.float()).to(gradient.dtype) if ctx.needs_input_grad[0] else None
        if states is None:
            return grad_states, None
        rows, factors = wide.reshape(-1, wide.shape[-1]), states.reshape(-1, states.shape[-1])
        return grad_states, (rows.T @ factors.float()).to(weight.dtype)
