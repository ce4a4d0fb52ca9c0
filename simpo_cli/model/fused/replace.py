"""Modules that stand in for a model's own on a CPU: the same numbers from fewer passes, with less kept for backward.

A stand-in has the parameters of the module that it replaces under the same names, so a model saves, loads and counts as
before; and it is used only where it gave the same numbers on random rows.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from simpo_cli.model.fused.mlp import fused_mlp
from simpo_cli.model.fused.norm import fused_norm

_SAME = 1e-5


class StandIn(NamedTuple):
    """A place in a model: the module around it, its name there, what the model has there and what may stand for it."""

    parent: nn.Module
    name: str
    own: nn.Module
    fused: nn.Module

    def place(self) -> None:
        self.parent._modules[self.name] = self.fused

    def restore(self) -> None:
        self.parent._modules[self.name] = self.own


def find_stand_ins(model: nn.Module) -> list[StandIn]:
    """Every module of a model that can be replaced, each with its replacement; nothing is replaced yet."""
    return [
        StandIn(parent, name, child, fused)
        for parent in model.modules()
        for name, child in parent.named_children()
        if (fused := _stand_in(child)) is not None
    ]


def _stand_in(own: nn.Module) -> nn.Module | None:
    """What may stand for a module, or None."""
    modules = list(own.modules())
    parameters = list(own.parameters())
    if (
        not parameters
        or any(p.device.type != "cpu" or p.dtype != torch.float32 for p in parameters)
        or any(type(p) is not nn.Parameter for p in parameters)
        or any(_has_hooks(module) for module in modules)
    ):
        return None
    candidates = [*fused_norm(own), *fused_mlp(own)]
    if not candidates:
        return None
    rows = torch.randn(1, 3, parameters[0].shape[-1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = own(rows)
        return next((one for one in candidates if _is_same(one(rows), expected)), None)


def _is_same(ours: Any, own: Any) -> bool:
    return (
        isinstance(own, torch.Tensor) and own.shape == ours.shape and torch.allclose(ours, own, rtol=_SAME, atol=_SAME)
    )


def _has_hooks(module: nn.Module) -> bool:
    return "forward" in vars(module) or any(
        (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    )
