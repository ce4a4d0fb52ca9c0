"""Modules that stand in for a model's own: the same numbers and gradients, and only where they agree."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.fused.mlp import _GatedDown
from simpo_cli.model.fused.norm import _RMSNorm
from simpo_cli.model.fused.replace import find_stand_ins
from simpo_cli.recipe.schema import LoraRecipe
from tests.tiny import tiny_model


def test_the_gradient_of_the_norm_is_the_gradient() -> None:
    torch.manual_seed(0)
    states = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: _RMSNorm.apply(x, w, 1e-3), (states, weight))
    expected = weight * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-3)
    torch.testing.assert_close(_RMSNorm.apply(states, weight, 1e-3), expected, rtol=0, atol=1e-12)


def test_the_gradient_of_the_feed_forward_is_the_gradient() -> None:
    torch.manual_seed(1)
    gate, up = (torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_GatedDown.apply, (gate, up, weight))
    expected = (gate * torch.sigmoid(gate) * up) @ weight.T
    torch.testing.assert_close(_GatedDown.apply(gate, up, weight), expected, rtol=0, atol=1e-12)


def _loss(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(ids).logits
    return torch.log_softmax(logits, -1)[..., :5].sum() / 100


@pytest.mark.parametrize(
    ("name", "norms", "mlps"),
    [
        ("llama", 5, 2),
        ("qwen3", 9, 2),
        ("olmo2", 9, 2),
        ("gemma2", 9, 0),
        ("phi3", 5, 0),
        ("cohere", 0, 2),
        ("gpt2", 0, 0),
    ],
)
def test_a_model_with_stand_ins_is_the_same_model(name: str, norms: int, mlps: int) -> None:
    model = tiny_model(name, **({"n_embd": 32, "n_head": 4, "n_layer": 2} if name == "gpt2" else {}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) / 3)
    ids = torch.randint(0, 400, (2, 9))
    names, keys = [n for n, _ in model.named_parameters()], list(model.state_dict())
    own = torch.autograd.grad(_loss(model, ids), list(model.parameters()))
    own_logits = model(ids).logits

    stand_ins = find_stand_ins(model)
    kinds = Counter(type(one.fused).__name__ for one in stand_ins)
    assert kinds == +Counter({"FusedRMSNorm": norms, "FusedGatedMLP": mlps})
    for one in stand_ins:
        one.place()
    assert [n for n, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == keys
    fused = torch.autograd.grad(_loss(model, ids), list(model.parameters()))
    total = torch.cat([(a - b).flatten() for a, b in zip(fused, own, strict=True)]).norm()
    assert float(total / torch.cat([g.flatten() for g in own]).norm()) < 1e-5
    for one in stand_ins:
        one.restore()
    assert torch.equal(model(ids).logits, own_logits)


def test_adapters_keep_their_own_feed_forward() -> None:
    model = add_adapters(tiny_model(), LoraRecipe(rank=2))
    kinds = Counter(type(one.fused).__name__ for one in find_stand_ins(model))
    assert kinds == Counter({"FusedRMSNorm": 5})


class _OtherRMSNorm(nn.Module):
    """Looks like a norm, and computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.eps = 1e-6

    def forward(self, states: Tensor) -> Tensor:
        return self.weight * states / states.abs().mean(-1, keepdim=True)


def _norm_with(change: Any) -> nn.Module:
    model = tiny_model()
    change(model.model.norm)
    return nn.Sequential(model.model.norm)


def _mlp_with(change: Any) -> nn.Module:
    mlp = tiny_model().model.layers[0].mlp
    change(mlp)
    return nn.ModuleDict({"mlp": mlp})


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(_OtherRMSNorm()),
        _norm_with(lambda norm: norm.to(torch.bfloat16)),
        _norm_with(lambda norm: norm.register_forward_hook(lambda *_: None)),
        _norm_with(lambda norm: norm.register_parameter("bias", nn.Parameter(torch.zeros(32)))),
        _mlp_with(lambda mlp: setattr(mlp, "act_fn", nn.GELU())),
        _mlp_with(lambda mlp: mlp.down_proj.register_forward_hook(lambda *_: None)),
        _mlp_with(lambda mlp: mlp.down_proj.register_parameter("bias", nn.Parameter(torch.zeros(32)))),
    ],
    ids=[
        "another norm",
        "narrow weights",
        "a hook",
        "a parameter more",
        "another activation",
        "a hook within",
        "a bias",
    ],
)
def test_what_is_not_plainly_the_same_is_left_alone(model: nn.Module) -> None:
    assert find_stand_ins(model) == []
