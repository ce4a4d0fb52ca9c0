"""Fused layers: norms and gated feed-forwards of the same numbers, from fewer passes and with less kept for backward.

On a CPU the arithmetic is ours, for float32, and saves memory (docs/compute.md has the measurement). On a CUDA device
it is Liger's kernels (Hsu et al. 2024, arXiv:2410.10989), with the extra `liger`; torch.compile does the same by
itself, so compiled layers go without. Liger's rotary embedding is left out: the layers call theirs by a name of their
module, which all models of a family in the process share, on whatever device; and the kernel overwrites the queries and
keys that it is given, unseen by autograd.

A fused layer has the parameters of the module that it replaces under the same names, so a model saves, loads and counts
as before; and it is used only where it gave the same numbers and gradients on random rows.
"""

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, silu

from simpo_cli.model.logprobs import has_hooks

_SAME = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}  # of the norm, by the type that came out
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class FusedLayer(NamedTuple):
    """A place in a model: the module around it, its name there, what the model has there and what may replace it."""

    parent: nn.Module
    name: str
    own: nn.Module
    fused: "FusedNorm | FusedGatedMLP"

    def place(self) -> None:
        self.parent._modules[self.name] = self.fused

    def restore(self) -> None:
        self.parent._modules[self.name] = self.own


class FusedNorm(nn.Module):
    """An RMSNorm over the last dimension; states in another type than the weight go through the model's own.

    Args:
        offset: added to the weight: 1 in Gemma, 0 in others.
        liger: whether Liger's kernel computes it.
    """

    def __init__(self, own: nn.Module, eps: float, offset: float, *, liger: bool) -> None:
        super().__init__()
        self.weight: nn.Parameter = own.get_parameter("weight")
        self.offset, self.liger = offset, liger
        self._eps = eps
        self._own = (own,)  # in a tuple, so that its parameter is not counted twice

    def forward(self, states: Tensor) -> Any:
        if states.dtype != self.weight.dtype:
            return self._own[0](states)
        if self.liger:
            from liger_kernel.ops.rms_norm import LigerRMSNormFunction

            casting = "gemma" if self.offset else "llama"
            # not in place: the gradient that comes in may be another operation's too
            return LigerRMSNormFunction.apply(states, self.weight, self._eps, self.offset, casting, False)
        scale: Tensor = self.weight + self.offset if self.offset else self.weight
        return _RMSNorm.apply(states, scale, self._eps)  # type: ignore[no-untyped-call]


class FusedGatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)); its projections are the model's own modules, with adapters where they have them.

    Args:
        liger: whether Liger's kernel computes the product; on a CPU the projections have to be plain linear layers.
    """

    def __init__(self, own: nn.Module, *, liger: bool) -> None:
        super().__init__()
        for name, child in own.named_children():
            self.add_module(name, child)
        self.liger = liger
        self._own = (own,)

    def forward(self, states: Tensor) -> Any:
        gate_proj, up_proj, down_proj = (self.get_submodule(name) for name in _PROJECTIONS)
        gate, up = gate_proj(states), up_proj(states)
        if self.liger:
            from liger_kernel.ops.swiglu import LigerSiLUMulFunction

            return down_proj(LigerSiLUMulFunction.apply(gate, up))
        weight = down_proj.get_parameter("weight")
        if gate.dtype != weight.dtype:  # autocast
            return down_proj(self.get_submodule("act_fn")(gate) * up)
        return _GatedDown.apply(gate, up, weight)  # type: ignore[no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with a backward pass of its own (Zhang and Sennrich 2019, arXiv:1910.07467).

    Written as transformers does, a norm is six operations forward and a dozen backward, each of which reads and writes
    the whole of the hidden states, and some of which keep them. By hand it is three and five, and keeps only its input.
    With x of (rows, H), r = 1 / sqrt(mean(x^2) + eps), w the weight and g the gradient of the output:

        y = r x w        dx = r g w - x r^3 (g x . w) / H        dw = sum over rows of r g x
    """

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


class _GatedDown(torch.autograd.Function):
    """(silu(gate) * up) W', keeping two wide arrays instead of four.

    autograd keeps gate, silu(gate), up and their product for every token of every layer: more than half of what a layer
    keeps in all. The first and the third are enough: the other two are made again in the backward pass by elementwise
    operations, which cost little beside the products around them.
    """

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


# Which modules can be replaced


@lru_cache(maxsize=1)
def liger_version() -> str | None:
    """The version of Liger that is installed, or None."""
    try:
        return version("liger-kernel")
    except PackageNotFoundError:
        return None


def find_fused_layers(model: nn.Module) -> list[FusedLayer]:
    """Every module of a model that can be replaced, each with its replacement; nothing is replaced yet."""
    return [
        FusedLayer(parent, name, child, fused)
        for parent in model.modules()
        for name, child in parent.named_children()
        if (fused := _fused(child)) is not None
    ]


def _fused(own: nn.Module) -> FusedNorm | FusedGatedMLP | None:
    parameters = list(own.parameters())
    if not parameters or any(type(p) is not nn.Parameter for p in parameters) or any(map(has_hooks, own.modules())):
        return None
    if not (candidates := _candidates(own, parameters)):
        return None
    first = parameters[0]
    rows = torch.randn(1, 3, first.shape[-1], generator=torch.Generator().manual_seed(0)).to(first.device, first.dtype)
    return next((one for one in candidates if _is_same(one, own, rows)), None)


def _candidates(own: nn.Module, parameters: list[nn.Parameter]) -> list[FusedNorm | FusedGatedMLP]:
    """What may compute the same as a module, going by its parts."""
    devices = {p.device.type for p in parameters}
    liger = devices == {"cuda"}
    if liger and liger_version() is None:
        return []
    if not liger and (devices != {"cpu"} or any(p.dtype != torch.float32 for p in parameters)):
        return []
    eps = getattr(own, "variance_epsilon", getattr(own, "eps", None))
    has_weight_alone = [(name, p.dim()) for name, p in own.named_parameters()] == [("weight", 1)]
    if type(own).__name__.endswith("RMSNorm") and has_weight_alone and isinstance(eps, float):
        return [FusedNorm(own, eps, offset, liger=liger) for offset in (0.0, 1.0)]
    children = dict(own.named_children())
    if children.keys() != {*_PROJECTIONS, "act_fn"}:
        return []
    is_plain = all(type(children[name]) is nn.Linear for name in _PROJECTIONS) and children["down_proj"].bias is None
    return [FusedGatedMLP(own, liger=liger)] if liger or is_plain else []


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
