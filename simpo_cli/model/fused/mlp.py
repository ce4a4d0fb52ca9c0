"""The gated feed-forward of the Llama family, down(silu(gate(x)) * up(x)), keeping two wide arrays instead of four.

autograd keeps gate(x), silu(gate(x)), up(x) and their product for every token of every layer: more than half of what a
layer keeps in all. The first and the third are enough: the other two are made again in the backward pass by elementwise
operations, which cost little beside the products around them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, silu

_CHILDREN = ["gate_proj", "up_proj", "down_proj", "act_fn"]


def is_gated(own: nn.Module) -> bool:
    """Whether a module has the parts of such a feed-forward."""
    return sorted(name for name, _ in own.named_children()) == sorted(_CHILDREN)


def fused_mlp(own: nn.Module) -> list["FusedGatedMLP"]:
    """What may compute the same as a module, where it is such a feed-forward of plain linear layers."""
    if not is_gated(own):
        return []
    children = dict(own.named_children())
    projections = [children[name] for name in _CHILDREN[:3]]
    if any(type(layer) is not nn.Linear for layer in projections) or children["down_proj"].bias is not None:
        return []
    return [FusedGatedMLP(own)]


class FusedGatedMLP(nn.Module):
    """A gated feed-forward of float32 states; its projections are the model's own modules."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.gate_proj = own.get_submodule("gate_proj")
        self.up_proj = own.get_submodule("up_proj")
        self.down_proj = own.get_submodule("down_proj")
        self.act_fn = own.get_submodule("act_fn")
        self._own = (own,)  # in a tuple, so that its parameters are not counted twice

    def forward(self, states: Tensor) -> Tensor:
        gate, up = self.gate_proj(states), self.up_proj(states)
        weight = self.down_proj.get_parameter("weight")
        if gate.dtype != weight.dtype:  # autocast
            product: Tensor = self.down_proj(self.act_fn(gate) * up)
            return product
        fused: Tensor = _GatedDown.apply(gate, up, weight)  # type: ignore[no-untyped-call]
        return fused


class _GatedDown(torch.autograd.Function):
    """(silu(gate) * up) W'."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return linear(silu(gate).mul_(up), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        gate_rows, up_rows = gate.reshape(-1, gate.shape[-1]), up.reshape(-1, up.shape[-1])
        activated = silu(gate_rows)
        grad_product = flat @ weight
        grad_up = grad_product * activated
        grad_weight = flat.T @ activated.mul_(up_rows) if ctx.needs_input_grad[2] else None
        grad_gate = torch.ops.aten.silu_backward(grad_product.mul_(up_rows), gate_rows)
        return grad_gate.view(gate.shape), grad_up.view(up.shape), grad_weight
