"""Narrow weights on a CPU that multiplies them slowly: the product of float32, rounded once, forward and backward."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from simpo_cli.data.plan import Packing
from simpo_cli.model import widened
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy
from simpo_cli.model.widened import WidenedLinear, product_dtype, widen_products
from simpo_cli.recipe.schema import LoraRecipe
from tests.model.reference import adapted, gradients, random_pairs
from tests.tiny import tiny_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def slow_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widened, "multiplies_in_bf16", lambda _: False)


def _layer(dtype: torch.dtype, *, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(24, 40, bias=bias, dtype=dtype)
    widen_products(layer)
    assert type(layer) is WidenedLinear
    return layer


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_and_gradients_are_those_of_float32_rounded_once(dtype: torch.dtype, is_frozen: bool) -> None:
    layer = _layer(dtype).requires_grad_(not is_frozen)
    states = torch.randn(2, 30, 24).to(dtype).requires_grad_()
    gradient = torch.randn(2, 30, 40).to(dtype)
    output = layer(states)
    output.backward(gradient)
    wide, weight = (tensor.detach().float() for tensor in (states, layer.weight))
    assert torch.equal(output, linear(wide, weight).to(dtype))
    assert states.grad is not None
    assert torch.equal(states.grad, (gradient.float() @ weight).to(dtype))
    if is_frozen:
        assert layer.weight.grad is None
    else:
        expected = gradient.float().reshape(60, 40).T @ wide.reshape(60, 24)
        assert torch.equal(layer.weight.grad, expected.to(dtype))  # type: ignore[arg-type]


def test_a_bias_is_added_and_gets_its_gradient() -> None:
    layer = _layer(torch.bfloat16, bias=True)
    states = torch.randn(30, 24).to(torch.bfloat16)
    layer(states).sum().backward()
    assert layer.bias.grad is not None
    assert torch.equal(layer.bias.grad, torch.full((40,), 30.0, dtype=torch.bfloat16))
    with torch.no_grad():
        assert torch.equal(layer(states), linear(states.float(), layer.weight.float()).to(torch.bfloat16) + layer.bias)


def test_what_is_fast_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert product_dtype(torch.float32, CPU) == torch.float32
    assert product_dtype(torch.bfloat16, torch.device("cuda")) == torch.bfloat16
    whole = nn.Linear(4, 4)
    widen_products(whole)
    assert type(whole) is nn.Linear
    monkeypatch.setattr(widened, "multiplies_in_bf16", lambda _: True)
    narrow = nn.Linear(4, 4, dtype=torch.bfloat16)
    widen_products(narrow)
    assert type(narrow) is nn.Linear


def test_few_rows_and_autocast_take_the_usual_product(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = _layer(torch.bfloat16)
    monkeypatch.setattr(widened._WidenedProduct, "apply", lambda *_: pytest.fail("the weight was widened"))
    layer(torch.randn(15, 24, dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(64, 24))


def _gradient(policy: Policy, packed: Any) -> tuple[Tensor, Tensor]:
    policy.zero_grad()
    logps = policy(packed)
    (logps * torch.linspace(0.5, 1.0, len(logps))).sum().backward()
    return logps.detach().double(), torch.cat([grad.flatten().double() for grad in gradients(policy).values()])


@pytest.mark.parametrize("packing", ["shared_prefix", "padded"])
@pytest.mark.parametrize("trained", ["all", "adapters"])
def test_a_model_is_no_farther_from_exact_arithmetic_than_with_the_usual_products(
    packing: Packing, trained: str
) -> None:
    narrow: Any = tiny_model("qwen2", dtype=torch.bfloat16)
    if trained == "adapters":
        narrow = adapted(narrow, LoraRecipe(rank=4))
    packed = pack(random_pairs(12, seed=5), CPU)
    found = []
    for kind in ("double", "usual", "widened"):
        model = copy.deepcopy(narrow)
        if kind == "double":
            model = model.double()
        if kind == "widened":
            widen_products(model)
            assert isinstance(model.get_output_embeddings(), WidenedLinear)
        found.append(_gradient(Policy(model, packing).train(), packed))
    (logps, gradient), usual, ours = found
    assert (ours[0] - logps).norm() < 1.2 * (usual[0] - logps).norm()
    assert (ours[1] - gradient).norm() < 1.2 * (usual[1] - gradient).norm()
    assert (ours[1] - gradient).norm() < 0.1 * gradient.norm()
