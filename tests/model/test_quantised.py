"""Adapters beside quantised weights compute what they would beside the plain weights that those stand for."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simpo_cli.errors import UserError
from simpo_cli.model import quantised
from simpo_cli.model.load import load_model
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy, trainable
from simpo_cli.model.self_check import CheckPairs, choose_packing
from simpo_cli.model.source import find_model
from simpo_cli.recipe.schema import LoraRecipe
from tests.model.reference import (
    adapted,
    gradients,
    policy_loss,
    random_pairs,
    relative,
    response_logps,
    simpo_loss_backward,
)
from tests.tiny import save_tiny_model

PAIRS = random_pairs(5, seed=3)
LORA = LoraRecipe(rank=4)
# Dettmers et al. 2023, appendix E
NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]
FAMILIES = {
    "llama": {},
    "qwen3": {},
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {"sliding_window": 6},
}


def _folder(path: Path, name: str = "llama", **changes: Any) -> Path:
    return save_tiny_model(path / name, model_type=name, **{**FAMILIES.get(name, {}), **changes})


def _quantised(folder: Path, kind: Any, dtype: torch.dtype = torch.float32) -> Any:
    return load_model(find_model(str(folder), quantization=kind), dtype)


def _plain(folder: Path, like: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The unquantised model of a folder, with the numbers that the quantised weights of another stand for."""
    model = load_model(find_model(str(folder)), dtype)
    for name, module in model.named_modules():
        other = like.get_submodule(name)
        if quantised.is_quantised(other):
            module.get_parameter("weight").data = _decoded(other.weight).to(dtype)
    return model


def _decoded(weight: Any) -> Tensor:
    """What a quantised weight stands for, from its codes by the papers."""
    if (state := getattr(weight, "quant_state", None)) is None:
        return weight.data.float() * weight.SCB[:, None] / 127
    packed = weight.data.flatten().numpy()
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)
    # the scales of 64 numbers are 8-bit codes themselves, less their mean, with a scale for every 256
    scales = state.state2.code[state.absmax.long()].double()
    scales *= state.state2.absmax.double().repeat_interleave(state.state2.blocksize)[: len(scales)]
    scales = (scales + float(state.offset)).float()
    codes = codes[: state.shape.numel()]
    numbers = (
        torch.tensor(NF4)[torch.from_numpy(codes).long()] * scales.repeat_interleave(state.blocksize)[: len(codes)]
    )
    return numbers.reshape(state.shape)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_codes_stand_for_the_nearest_numbers(tmp_path: Path, kind: str) -> None:
    folder = _folder(tmp_path, hidden_size=64, intermediate_size=128)
    model, whole = _quantised(folder, kind), load_model(find_model(str(folder)), torch.float32)
    layers = [name for name, module in model.named_modules() if quantised.is_quantised(module)]
    assert len(layers) == 14
    assert type(model.lm_head) is nn.Linear
    for name in layers:
        weight, own = model.get_submodule(name).weight, whole.get_submodule(name).get_parameter("weight").detach()
        decoded = _decoded(weight)
        torch.testing.assert_close(quantised.dequantised(weight, torch.float32), decoded, rtol=0, atol=1e-6)
        largest = own.abs().max()
        # half of NF4's widest gap, and what its scales lose; half a step of 127
        most = largest * (0.16 if kind == "nf4" else 0.51 / 127)  # through float16
        assert float((decoded - own).abs().max()) < most


@pytest.mark.parametrize("shape", [(64, 32), (64, 96), (10, 100), (7, 33), (3, 65)])
def test_rows_may_end_within_a_block(shape: tuple[int, int]) -> None:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight = quantised.bitsandbytes().nn.Params4bit(numbers, quant_type="nf4", requires_grad=False).to("cpu")
    torch.testing.assert_close(quantised.dequantised(weight, torch.float32), _decoded(weight), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_the_plain_weights_before_and_after_the_model_was_used(
    tmp_path: Path, name: str, kind: Any
) -> None:
    folder = _folder(tmp_path, name)
    base = _quantised(folder, kind)
    plain = _plain(folder, base)
    torch.manual_seed(1)
    model = adapted(base, LORA)
    torch.manual_seed(1)
    reference = adapted(plain, LORA)
    expected_loss = simpo_loss_backward(reference, PAIRS, 2.0, 1.0)
    expected = gradients(reference)
    policy = Policy(model, "shared_prefix").train()

    def difference() -> float:
        policy.train()
        loss = policy_loss(policy, PAIRS)
        loss.backward()
        assert loss.item() == pytest.approx(expected_loss, rel=1e-4)
        return relative(gradients(model), expected)

    assert difference() < 1e-3
    with torch.no_grad():  # what repacks the weights of bitsandbytes' own layers
        scores = policy.eval()(pack(PAIRS, policy.device))
    own = [response_logps(reference, pair.prompt, side) for pair in PAIRS for side in (pair.chosen, pair.rejected)]
    torch.testing.assert_close(scores, torch.cat(own).detach(), rtol=0, atol=2e-4)
    with policy.untouched() as causal:
        causal.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False)
    model.save_pretrained(tmp_path / "adapters")
    model.state_dict()
    assert difference() < 1e-3


def test_the_librarys_own_layers_go_wrong_where_ours_do_not(tmp_path: Path) -> None:
    """What `use_own_products` is for; only on a processor with products of bfloat16."""
    library = quantised.bitsandbytes()
    if not library.functional.has_avx512bf16():
        pytest.skip("this processor has no products of bfloat16")
    folder = _folder(tmp_path, hidden_size=64, intermediate_size=128, head_dim=16)
    model = adapted(_quantised(folder, "nf4"), LORA)
    for module in model.modules():
        if quantised.is_quantised(module):
            module.__class__ = library.nn.Linear4bit
    policy = Policy(model, "padded").train()
    policy_loss(policy, PAIRS).backward()
    before = gradients(model)
    with torch.no_grad():
        policy.eval()(pack(PAIRS, policy.device))
    policy.train()
    policy_loss(policy, PAIRS).backward()
    assert relative(gradients(model), before) > 0.01


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_self_check_passes(tmp_path: Path, name: str, kind: Any) -> None:
    model = adapted(_quantised(_folder(tmp_path, name, dtype=torch.bfloat16), kind, torch.bfloat16), LORA)
    policy = Policy(model).train()
    check = choose_packing(policy, "auto", None, CheckPairs.of(PAIRS, PAIRS))
    assert check.packing == "shared_prefix"
    assert check.difference is not None
    assert check.difference.gradient is not None
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert any(map(quantised.is_quantised, policy.modules()))


def test_the_self_check_compares_with_the_plain_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A product that is wrong in both forwards would agree with itself."""
    model = adapted(_quantised(_folder(tmp_path), "nf4"), LORA)
    product = quantised._product
    monkeypatch.setattr(quantised, "_product", lambda states, weight, bias: product(states, weight, bias) * 1.01)
    with pytest.raises(UserError, match="is not what this model computes itself"):
        choose_packing(Policy(model).train(), "auto", None, CheckPairs.of(PAIRS, PAIRS))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_row_does_not_depend_on_its_neighbours_or_on_the_mode(tmp_path: Path, kind: Any) -> None:
    layer = next(m for m in _quantised(_folder(tmp_path), kind).modules() if quantised.is_quantised(m))
    rows = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    rows[0, 0, 3] = 40.0  # an outlier, for which a threshold would treat its column otherwise
    whole = layer.train()(rows)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(rows[:, 1:]), whole[:, 1:], rtol=0, atol=1e-6)
    expected = rows @ _decoded(layer.weight).T
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_products_follow_autocast(tmp_path: Path, kind: Any) -> None:
    layer = next(m for m in _quantised(_folder(tmp_path), kind).modules() if quantised.is_quantised(m))
    rows = torch.randn(3, 32)
    with torch.autocast("cpu", torch.bfloat16):
        product = layer(rows)
    assert product.dtype == torch.bfloat16
    torch.testing.assert_close(product.float(), layer(rows), rtol=0.03, atol=0.1)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_folder_that_is_stored_quantised_is_read_as_it_is(tmp_path: Path, kind: Any) -> None:
    folder, stored = _folder(tmp_path, dtype=torch.bfloat16), tmp_path / "stored"
    model = _quantised(folder, kind, torch.bfloat16)
    wanted = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    model.save_pretrained(stored)
    source = find_model(str(stored))
    assert (source.quantization, source.is_stored_quantised, source.stored_dtype) == (kind, True, torch.bfloat16)
    again = load_model(source, torch.bfloat16)
    torch.testing.assert_close(again(input_ids=torch.tensor([[1, 2, 3]])).logits, wanted, rtol=0, atol=0)
    other = "int8" if kind == "nf4" else "nf4"
    with pytest.raises(UserError, match=f"model.quantization is {other}, and the weights of .* are stored as {kind}"):
        find_model(str(stored), quantization=other)


def test_kinds_of_bitsandbytes_that_are_not_read_are_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="are quantised .bitsandbytes, 4 bits.; of quantised weights"):
        find_model(str(folder))


@pytest.mark.parametrize("kind", [{"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}])
def test_a_configuration_that_claims_quantised_weights_is_compared_with_them(tmp_path: Path, kind: Any) -> None:
    folder = save_tiny_model(tmp_path / "claimed")
    file = folder / "config.json"
    config = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes", **kind}}))
    with pytest.raises(UserError, match="says that its weights are quantised, and its files hold them whole"):
        load_model(find_model(str(folder)), torch.float32, torch.device("cpu"))


def test_bitsandbytes_is_imported_without_its_look_at_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import takes a package `kernels` for leave to fetch compiled code; ours hides that one for a moment."""
    fetching = object()
    monkeypatch.setitem(sys.modules, "kernels", fetching)
    seen: list[Any] = []
    monkeypatch.setattr(quantised, "import_module", lambda _: seen.append(sys.modules["kernels"]))
    quantised.bitsandbytes.cache_clear()
    quantised.bitsandbytes()
    quantised.bitsandbytes.cache_clear()  # which is that of the test now
    assert seen == [None]
    assert sys.modules["kernels"] is fetching


def test_copies_have_weights_of_their_own(tmp_path: Path) -> None:
    model = adapted(_quantised(_folder(tmp_path), "nf4"), LORA)
    twin = copy.deepcopy(model)
    own, its = (next(m for m in one.modules() if quantised.is_quantised(m)) for one in (model, twin))
    its.weight.data = torch.zeros_like(its.weight.data)
    assert not torch.equal(own(torch.ones(1, 32)), its(torch.ones(1, 32)))
    assert trainable(twin).keys() == trainable(model).keys()


def test_sizes_are_what_the_tensors_take() -> None:
    rows, weights = 512, 512 * 256
    layer = quantised.bitsandbytes().nn.Linear4bit(256, 512, bias=False, quant_type="nf4", compress_statistics=True)
    weight: Any = layer.to("cpu").weight
    state = weight.quant_state
    tensors = [weight.data, state.absmax, state.state2.absmax]
    assert quantised.bytes_held("nf4", weights, rows) == sum(one.nbytes for one in tensors)
    eight: Any = quantised.bitsandbytes().nn.Linear8bitLt(256, 512, bias=False, has_fp16_weights=False).to("cpu").weight
    assert quantised.bytes_held("int8", weights, rows) == eight.data.nbytes + eight.SCB.nbytes
