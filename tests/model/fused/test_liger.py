"""Liger's kernels in a model: placed where they agree, refused where not, and gone again; the kernels are doubles."""

import sys
from collections import Counter
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.fused import liger, replace
from simpo_cli.model.fused.liger import LigerGatedMLP, LigerNorm, liger_modules
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy
from simpo_cli.recipe.schema import LoraRecipe
from tests.pairs import random_pairs
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


@pytest.fixture(autouse=True)
def _liger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Liger as if it were installed, and asked on a CPU."""
    norms, gates = ModuleType("liger_kernel.ops.rms_norm"), ModuleType("liger_kernel.ops.swiglu")
    norms.LigerRMSNormFunction = _Norm  # type: ignore[attr-defined]
    gates.LigerSiLUMulFunction = _SiLUMul  # type: ignore[attr-defined]
    for module in (ModuleType("liger_kernel"), ModuleType("liger_kernel.ops"), norms, gates):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(liger, "liger_version", lambda: "0.8.5")
    monkeypatch.setattr(replace, "_candidates", lambda own, _: liger_modules(own))
    _Norm.calls.clear()
    _SiLUMul.calls.clear()


def _kinds(model: nn.Module) -> Counter[str]:
    return Counter(type(one.fused).__name__ for one in replace.find_stand_ins(model))


def _model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    model = tiny_model(name, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) / 3)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "norms", "mlps", "offset"),
    [("llama", 5, 2, 0.0), ("qwen3", 9, 2, 0.0), ("gemma2", 9, 0, 1.0), ("phi3", 5, 0, 0.0), ("cohere", 0, 2, None)],
)
def test_what_agrees_is_found(name: str, norms: int, mlps: int, offset: float | None, dtype: torch.dtype) -> None:
    model = _model(name, dtype)
    assert _kinds(model) == +Counter({"LigerNorm": norms, "LigerGatedMLP": mlps})
    offsets = {one.fused._offset for one in replace.find_stand_ins(model) if isinstance(one.fused, LigerNorm)}
    assert offsets == ({offset} if norms else set())


def test_a_policy_uses_them_while_prompts_are_shared_and_gives_them_back() -> None:
    model = _model("llama")
    names, keys = [name for name, _ in model.named_parameters()], list(model.state_dict())
    packed = pack(random_pairs(3, seed=1), torch.device("cpu"))
    policy = Policy(model)
    own = policy(packed)
    _Norm.calls.clear()
    policy.packing = "shared_prefix"
    assert policy.liger_modules == 7
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


def test_under_autocast_the_product_is_narrow_and_a_norm_of_narrow_states_is_the_models_own() -> None:
    model = _model("qwen3")  # its queries and keys come to their norms in bf16
    policy = Policy(model, "shared_prefix")
    _Norm.calls.clear(), _SiLUMul.calls.clear()
    with torch.autocast("cpu", torch.bfloat16):
        policy(pack(random_pairs(3, seed=1), torch.device("cpu")))
    assert sum(_Norm.calls.values()) == 5  # of 9
    assert _SiLUMul.calls == {torch.bfloat16: 2}


def test_adapters_and_their_dropout_stay_in_place() -> None:
    model = add_adapters(_model("llama"), LoraRecipe(rank=2, dropout=0.5)).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)  # at the start, when it is 0, dropout changes nothing
    assert _kinds(model) == {"LigerNorm": 5, "LigerGatedMLP": 2}
    assert all(module.training for module in model.modules() if isinstance(module, nn.Dropout))


def _raises(*_: Any) -> Tensor:
    raise RuntimeError("no kernel for this card")


@pytest.mark.parametrize(
    ("apply", "kept"),
    [
        (lambda x, w, eps, *_: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * w * 1.001, 0),
        (lambda x, w, eps, *_: _WrongGradient.apply(x) * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * w, 0),
        (lambda x, w, *_: x * w * torch.nan, 0),
        (lambda x, w, eps, *_: nn.functional.rms_norm(x, x.shape[-1:], w, eps), 5),
        (_raises, 0),
    ],
    ids=["values", "gradient", "not a number", "right", "raises"],
)
def test_a_norm_that_differs_is_refused(apply: Any, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Norm, "apply", apply)
    assert _kinds(_model("llama")) == +Counter({"LigerNorm": kept, "LigerGatedMLP": 2})


@pytest.mark.parametrize(
    ("apply", "kept"),
    [
        (lambda a, b: torch.nn.functional.gelu(a) * b, 0),
        (lambda a, b: _WrongGradient.apply(silu(a)) * b, 0),
        (lambda a, b: silu(a) * b if a.dtype == torch.float32 else (silu(a) * b) * 1.05, 0),
        (lambda a, b: silu(a.double()).to(b.dtype) * b, 2),
    ],
    ids=["values", "gradient", "only under autocast", "right"],
)
def test_a_feed_forward_that_differs_is_refused(apply: Any, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_SiLUMul, "apply", apply)
    assert _kinds(_model("llama")) == +Counter({"LigerNorm": 5, "LigerGatedMLP": kept})


def test_they_are_for_cuda_and_ours_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(liger, "liger_version", lambda: "0.8.5")
    layer = tiny_model().model.layers[0]

    def kinds(device: str, dtype: torch.dtype, own: nn.Module) -> list[str]:
        parameters: Any = [SimpleNamespace(device=torch.device(device), dtype=dtype)]
        return [type(one).__name__ for one in replace._candidates(own, parameters)]

    for dtype in (torch.float32, torch.bfloat16):
        assert kinds("cuda", dtype, layer.input_layernorm) == ["LigerNorm", "LigerNorm"]
        assert kinds("cuda", dtype, layer.mlp) == ["LigerGatedMLP"]
    assert kinds("cpu", torch.float32, layer.input_layernorm) == ["FusedRMSNorm", "FusedRMSNorm"]
    assert kinds("cpu", torch.bfloat16, layer.input_layernorm) == []
    assert kinds("cuda", torch.float32, layer.self_attn) == []
    monkeypatch.setattr(liger, "liger_version", lambda: None)
    assert kinds("cuda", torch.float32, layer.mlp) == []


def test_a_feed_forward_has_the_parts_of_the_models_own() -> None:
    own = tiny_model().model.layers[0].mlp
    ours = LigerGatedMLP(own)
    assert {name: id(part) for name, part in ours.named_children()} == {
        name: id(part) for name, part in own.named_children()
    }
