"""Norms and feed-forwards from Liger's kernels for CUDA (Hsu et al. 2024, arXiv:2410.10989), with the extra `liger`.

What a model's own module does in several passes over the hidden states, each of these kernels does in one, and it keeps
less for the backward pass. torch.compile does the same by itself, so compiled layers go without.

Its rotary embedding is left out. The layers call theirs by a name of their module, which all models of a family in the
process share, on whatever device; and the kernel overwrites the queries and keys that it is given, unseen by autograd.
"""

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor, nn

from simpo_cli.model.fused.mlp import is_gated
from simpo_cli.model.fused.norm import epsilon_of


@lru_cache(maxsize=1)
def liger_version() -> str | None:
    """The version of Liger that is installed, or None."""
    try:
        return version("liger-kernel")
    except PackageNotFoundError:
        return None


def liger_modules(own: nn.Module) -> list[nn.Module]:
    """What may compute the same as a module on a CUDA device."""
    if liger_version() is None:
        return []
    if (eps := epsilon_of(own)) is not None:
        return [LigerNorm(own, eps, 0.0, "llama"), LigerNorm(own, eps, 1.0, "gemma")]
    return [LigerGatedMLP(own)] if is_gated(own) else []


class LigerNorm(nn.Module):
    """An RMSNorm; states in another type than the weight go through the model's own, which says what comes out."""

    def __init__(self, own: nn.Module, eps: float, offset: float, casting: str) -> None:
        super().__init__()
        self.weight: nn.Parameter = own.get_parameter("weight")
        self._eps, self._offset, self._casting = eps, offset, casting
        self._own = (own,)  # in a tuple, so that its parameter is not counted twice

    def forward(self, states: Tensor) -> Tensor:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        if states.dtype != self.weight.dtype:
            normed: Tensor = self._own[0](states)
            return normed
        # not in place: the gradient that comes in may be another operation's too
        result: Tensor = LigerRMSNormFunction.apply(states, self.weight, self._eps, self._offset, self._casting, False)
        return result


class LigerGatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)); its projections are the model's own modules, with adapters where they have them."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        for name, child in own.named_children():
            self.add_module(name, child)
        self._own = (own,)

    def forward(self, states: Tensor) -> Any:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        gate, up = self.get_submodule("gate_proj")(states), self.get_submodule("up_proj")(states)
        return self.get_submodule("down_proj")(LigerSiLUMulFunction.apply(gate, up))
