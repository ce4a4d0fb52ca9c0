"""Fused norms and feed-forwards: the same numbers and gradients, placed only where they agree, and gone again.

Liger's kernels are doubles here: a card has the real ones.
"""

import sys
from collections import Counter
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from simpo_cli.model import fused_layers
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.fused_layers import FusedGatedMLP, FusedNorm, _GatedDown, _RMSNorm, find_fused_layers
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy
from simpo_cli.recipe.schema import LoraRecipe
from tests.model.reference import adapted, random_pairs
from tests.tiny import tiny_model

_CASTS = {"llama": 0.0, "gemma": 1.0}  # the offset that each family has


class _Norm:
    """In the form of Liger's function: arguments by position, the last ones with defaults."""

    calls: ClassVar[Counter[tuple[float, str, bool]]] = Counter()

    @classmethod
    def apply(cls, x: Tensor, w: Tensor, eps: float, offset: float, casting_mode: str, in_place: bool = True) -> Tensor:
        assert _CASTS[casting_mode] == offset
        cls.calls[offset, casting_mode, in_place] += 1
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        if casting_mode == "llama":
            return normed.to(x.dtype) * w
        return (normed * (offset + w.float())).to(x.dtype)


class _SiLUMul:
    calls: ClassVar[Counter[torch.dtype]] = Counter()

    @classmethod
    def apply(cls, a: Tensor, b: Tensor) -> Tensor:
        cls.calls[a.dtype] += 1
        return silu(a.float()).to(b.dtype) * b


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, *gradient: Tensor) -> Tensor:
        return gradient[0] * 1.1


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Liger as if it were installed, and parameters as if they were on a card."""
    norms, gates = ModuleType("liger_kernel.ops.rms_norm"), ModuleType("liger_kernel.ops.swiglu")
    norms.LigerRMSNormFunction = _Norm  # type: ignore[attr-defined]
    gates.LigerSiLUMulFunction = _SiLUMul  # type: ignore[attr-defined]
    for module in (ModuleType("liger_kernel"), ModuleType("liger_kernel.ops"), norms, gates):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(fused_layers, "liger_version", lambda: "0.8.5")
    candidates, on_a_card = fused_layers._candidates, [SimpleNamespace(device=torch.device("cuda"))]
    monkeypatch.setattr(fused_layers, "_candidates", lambda own, _: candidates(own, on_a_card))  # type: ignore[arg-type]
    _Norm.calls.clear()
    _SiLUMul.calls.clear()


def _model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    model = tiny_model(name, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) / 3)
    return model


def _found(model: nn.Module) -> tuple[int, int]:
    """How many norms and feed-forwards of a model can be replaced."""
    kinds = Counter(type(one.fused) for one in find_fused_layers(model))
    return kinds[FusedNorm], kinds[FusedGatedMLP]


# The arithmetic of a CPU


@pytest.mark.parametrize(
    ("ours", "plain", "shapes"),
    [
        pytest.param(
            lambda x, w: _RMSNorm.apply(x, w, 1e-3),
            lambda x, w: w * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-3),
            [(2, 3, 5), (5,)],
            id="norm",
        ),
        pytest.param(
            _GatedDown.apply,
            lambda gate, up, w: (gate * torch.sigmoid(gate) * up) @ w.T,
            [(2, 3, 5), (2, 3, 5), (4, 5)],
            id="feed-forward",
        ),
    ],
)
def test_the_gradient_is_the_gradient(ours: Any, plain: Any, shapes: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(ours, inputs)
    torch.testing.assert_close(ours(*inputs), plain(*inputs), rtol=0, atol=1e-12)


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
def test_a_model_with_fused_layers_is_the_same_model(name: str, norms: int, mlps: int) -> None:
    model, ids = _model(name), torch.randint(0, 400, (2, 9))
    names, keys = [n for n, _ in model.named_parameters()], list(model.state_dict())
    own = torch.autograd.grad(_loss(model, ids), list(model.parameters()))
    own_logits = model(ids).logits

    layers = find_fused_layers(model)
    assert _found(model) == (norms, mlps)
    for one in layers:
        assert not one.fused.liger
        one.place()
    assert [n for n, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == keys
    fused = torch.autograd.grad(_loss(model, ids), list(model.parameters()))
    total = torch.cat([(a - b).flatten() for a, b in zip(fused, own, strict=True)]).norm()
    assert float(total / torch.cat([g.flatten() for g in own]).norm()) < 1e-5
    for one in layers:
        one.restore()
    assert torch.equal(model(ids).logits, own_logits)


def test_adapters_keep_their_own_feed_forward() -> None:
    assert _found(add_adapters(tiny_model(), LoraRecipe(rank=2))) == (5, 0)


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
        pytest.param(nn.Sequential(_OtherRMSNorm()), id="another norm"),
        pytest.param(_norm_with(lambda norm: norm.to(torch.bfloat16)), id="narrow weights"),
        pytest.param(_norm_with(lambda norm: norm.register_forward_hook(lambda *_: None)), id="a hook"),
        pytest.param(
            _norm_with(lambda norm: norm.register_parameter("bias", nn.Parameter(torch.zeros(32)))),
            id="a parameter more",
        ),
        pytest.param(_mlp_with(lambda mlp: setattr(mlp, "act_fn", nn.GELU())), id="another activation"),
        pytest.param(_mlp_with(lambda mlp: mlp.down_proj.register_forward_hook(lambda *_: None)), id="a hook within"),
        pytest.param(
            _mlp_with(lambda mlp: mlp.down_proj.register_parameter("bias", nn.Parameter(torch.zeros(32)))), id="a bias"
        ),
    ],
)
def test_what_is_not_plainly_the_same_is_left_alone(model: nn.Module) -> None:
    assert find_fused_layers(model) == []


# Liger's kernels


@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "norms", "mlps", "offset"),
    [("llama", 5, 2, 0.0), ("qwen3", 9, 2, 0.0), ("gemma2", 9, 0, 1.0), ("phi3", 5, 0, 0.0), ("cohere", 0, 2, None)],
)
def test_what_agrees_is_found(name: str, norms: int, mlps: int, offset: float | None, dtype: torch.dtype) -> None:
    model = _model(name, dtype)
    assert _found(model) == (norms, mlps)
    fused = [one.fused for one in find_fused_layers(model)]
    assert all(one.liger for one in fused)
    assert {one.offset for one in fused if isinstance(one, FusedNorm)} == ({offset} if norms else set())


@pytest.mark.usefixtures("liger")
def test_a_policy_uses_them_while_prompts_are_shared_and_gives_them_back() -> None:
    model = _model("llama")
    names, keys = [name for name, _ in model.named_parameters()], list(model.state_dict())
    packed = pack(random_pairs(3, seed=1), torch.device("cpu"))
    policy = Policy(model)
    own = policy(packed)
    policy.packing = "shared_prefix"
    assert policy.num_liger_layers == 7
    _Norm.calls.clear(), _SiLUMul.calls.clear()
    torch.testing.assert_close(policy(packed), own, rtol=0, atol=1e-4)
    assert _Norm.calls == {(0.0, "llama", False): 5}  # never in place
    assert _SiLUMul.calls == {torch.float32: 2}
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == keys
    _Norm.calls.clear()
    with policy.untouched():
        policy(packed)
    policy.packing = "padded"
    assert torch.equal(policy(packed), own)
    assert not _Norm.calls


@pytest.mark.usefixtures("liger")
def test_under_autocast_the_product_is_narrow_and_a_norm_of_narrow_states_is_the_models_own() -> None:
    model = _model("qwen3")  # its queries and keys come to their norms in bf16
    policy = Policy(model, "shared_prefix")
    _Norm.calls.clear(), _SiLUMul.calls.clear()
    with torch.autocast("cpu", torch.bfloat16):
        policy(pack(random_pairs(3, seed=1), torch.device("cpu")))
    assert sum(_Norm.calls.values()) == 5  # of 9
    assert _SiLUMul.calls == {torch.bfloat16: 2}


@pytest.mark.usefixtures("liger")
def test_adapters_and_their_dropout_stay_in_place() -> None:
    model = adapted(_model("llama"), LoraRecipe(rank=2, dropout=0.5)).train()
    assert _found(model) == (5, 2)
    assert all(module.training for module in model.modules() if isinstance(module, nn.Dropout))


def _raises(*_: Any) -> Tensor:
    raise RuntimeError("no kernel for this card")


def _inverse(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize(
    ("kernel", "apply", "found"),
    [
        pytest.param(_Norm, lambda x, w, eps, *_: x * _inverse(x, eps) * w * 1.001, (0, 2), id="norm: values"),
        pytest.param(
            _Norm, lambda x, w, eps, *_: _WrongGradient.apply(x) * _inverse(x, eps) * w, (0, 2), id="norm: gradient"
        ),
        pytest.param(_Norm, lambda x, w, *_: x * w * torch.nan, (0, 2), id="norm: not a number"),
        pytest.param(_Norm, _raises, (0, 2), id="norm: raises"),
        pytest.param(_SiLUMul, lambda a, b: nn.functional.gelu(a) * b, (5, 0), id="product: values"),
        pytest.param(_SiLUMul, lambda a, b: _WrongGradient.apply(silu(a)) * b, (5, 0), id="product: gradient"),
        pytest.param(
            _SiLUMul,
            lambda a, b: silu(a) * b if a.dtype == torch.float32 else (silu(a) * b) * 1.05,
            (5, 0),
            id="product: only under autocast",
        ),
    ],
)
def test_a_kernel_that_differs_is_refused(
    kernel: type, apply: Any, found: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "apply", apply)
    assert _found(_model("llama")) == found


@pytest.mark.usefixtures("liger")
def test_on_a_card_without_liger_the_layers_stay_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_layers, "liger_version", lambda: None)
    assert _found(_model("llama")) == (0, 0)
