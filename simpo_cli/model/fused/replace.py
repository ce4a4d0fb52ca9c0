"""Modules that stand in for a model's own: the same numbers from fewer passes, with less kept for backward.

On a CPU they are ours, for float32; on a CUDA device they are Liger's kernels, where those are installed.

A stand-in has the parameters of the module that it replaces under the same names, so a model saves, loads and counts as
before; and it is used only where it gave the same numbers and gradients on random rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from simpo_cli.model.fused.liger import liger_modules
from simpo_cli.model.fused.mlp import fused_mlp
from simpo_cli.model.fused.norm import fused_norm

_SAME = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}  # of the norm, by the type that came out


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
        or any(type(p) is not nn.Parameter for p in parameters)
        or any(_has_hooks(module) for module in modules)
    ):
        return None
    candidates = _candidates(own, parameters)
    if not candidates:
        return None
    first = parameters[0]
    rows = torch.randn(1, 3, first.shape[-1], generator=torch.Generator().manual_seed(0)).to(first.device, first.dtype)
    return next((one for one in candidates if _is_same(one, own, rows)), None)


def _candidates(own: nn.Module, parameters: list[nn.Parameter]) -> Sequence[nn.Module]:
    devices = {p.device.type for p in parameters}
    if devices == {"cuda"}:
        return liger_modules(own)
    if devices == {"cpu"} and all(p.dtype == torch.float32 for p in parameters):
        return [*fused_norm(own), *fused_mlp(own)]
    return []


def _is_same(ours: nn.Module, own: nn.Module, rows: Tensor) -> bool:
    """Whether output and gradient agree on rows, with and without autocast. What raises here does not."""
    was_training = own.training
    own.eval()  # no two calls have the same dropout
    try:
        return all(_agrees(ours, own, rows, narrow) for narrow in (False, True))
    finally:
        own.train(was_training)


def _agrees(ours: nn.Module, own: nn.Module, rows: Tensor, narrow: bool) -> bool:
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=narrow):
        expected = _outcome(own, rows)
        try:
            actual = _outcome(ours, rows)
        except Exception:  # a kernel that does not compile here
            return False
    most = _SAME.get(expected[0].dtype, 0.0)
    return all(
        a.shape == b.shape and a.dtype == b.dtype and float((a - b).norm()) <= most * float(b.norm())
        for a, b in zip(actual, expected, strict=True)
    )


@torch.enable_grad()
def _outcome(module: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What a module makes of rows, and the gradient of an uneven sum of it."""
    rows = rows.detach().requires_grad_()
    output = module(rows)
    weights = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape)
    [gradient] = torch.autograd.grad((output * weights).sum(), rows)
    return output.detach(), gradient


def _has_hooks(module: nn.Module) -> bool:
    return "forward" in vars(module) or any(
        (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    )
