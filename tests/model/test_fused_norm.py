"""The norm by hand against the model's own, and only where they agree."""

from typing import Any

import pytest
import torch
from torch import nn

from simpo_cli.model.fused_norm import FusedRMSNorm, _RMSNorm, find_norms, fuse_norms, restore_norms
from tests.tiny import tiny_model


def test_the_gradient_by_hand_is_the_gradient() -> None:
    torch.manual_seed(0)
    states = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: _RMSNorm.apply(x, w, 1e-3), (states, weight))
    expected = weight * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-3)
    torch.testing.assert_close(_RMSNorm.apply(states, weight, 1e-3), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "count"), [("llama", 5), ("gemma2", 9), ("qwen3", 9), ("olmo2", 9), ("gpt2", 0), ("cohere", 0)]
)
def test_norms_are_found_where_a_model_has_them(name: str, count: int) -> None:
    model = tiny_model(name, **({"n_embd": 32, "n_head": 4, "n_layer": 2} if name == "gpt2" else {}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) / 3)
    ids = torch.randint(0, 400, (2, 9))
    own = model(ids).logits
    names = [name for name, _ in model.named_parameters()]
    keys = list(model.state_dict())

    norms = find_norms(model)
    assert len(norms) == count
    fuse_norms(norms)
    assert sum(isinstance(module, FusedRMSNorm) for module in model.modules()) == count
    torch.testing.assert_close(model(ids).logits, own, rtol=1e-4, atol=1e-4)
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == keys
    restore_norms(norms)
    assert not any(isinstance(module, FusedRMSNorm) for module in model.modules())
    assert torch.equal(model(ids).logits, own)


class _SlowRMSNorm(nn.Module):
    """Looks like a norm, and computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.eps = 1e-6

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.weight * states / states.abs().mean(-1, keepdim=True)


def _with(change: Any) -> nn.Module:
    model = tiny_model()
    change(model.model.norm)
    return nn.Sequential(model.model.norm)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(_SlowRMSNorm()),
        _with(lambda norm: norm.to(torch.bfloat16)),
        _with(lambda norm: norm.register_forward_hook(lambda *_: None)),
        _with(lambda norm: norm.register_parameter("bias", nn.Parameter(torch.zeros(32)))),
    ],
    ids=["other arithmetic", "narrow weights", "a hook", "another parameter"],
)
def test_what_is_not_plainly_such_a_norm_is_left_alone(model: nn.Module) -> None:
    assert find_norms(model) == []
