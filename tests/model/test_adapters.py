"""Adapters: no cast that autocast would undo, the same numbers, and the same start on any device."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from simpo_cli.model.adapters import add_adapters, save_adapters
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy
from simpo_cli.recipe.schema import LoraRecipe
from tests.model.reference import adapted, random_pairs
from tests.tiny import tiny_model

PAIRS = random_pairs(4, seed=31)
CPU = torch.device("cpu")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class _Casts(TorchDispatchMode):
    """Counts what is cast from bfloat16 to float32 with a row for each token of a pack."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.count = 0
        self._tokens = tokens

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if str(func) == "aten._to_copy.default" and (args[0].dtype, result.dtype) == (torch.bfloat16, torch.float32):
            self.count += self._tokens in args[0].shape[:-1]
        return result


def _adapted(**settings: Any) -> Any:
    """A bfloat16 base under 14 adapters that are no longer at their start."""
    return adapted(tiny_model(dtype=torch.bfloat16), LoraRecipe(rank=4, target_modules=ALL, **settings))


def _pass(policy: Policy, *, autocast: bool = True) -> tuple[int, Tensor, dict[str, Tensor]]:
    """Casts of a forward and a backward pass, log-probs and gradients."""
    policy.zero_grad()
    packed = pack(PAIRS, CPU)
    with _Casts(len(packed.tokens)) as casts:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logps = policy(packed)
        logps.sum().backward()
    return casts.count, logps.detach(), {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}


def _as_peft_has_it(policy: Policy) -> Policy:
    for module in policy.modules():
        vars(module).pop("_cast_input_dtype", None)
    return policy


def _require_equal(one: tuple[int, Tensor, dict[str, Tensor]], other: tuple[int, Tensor, dict[str, Tensor]]) -> None:
    assert torch.equal(one[1], other[1])
    assert one[2].keys() == other[2].keys()
    assert one[2]
    for name, gradient in one[2].items():
        assert torch.equal(gradient, other[2][name]), name


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("way", ["made", "loaded", "copied"])
def test_under_autocast_no_input_of_an_adapter_is_cast_and_no_number_changes(
    way: str, recompute: bool, tmp_path: Path
) -> None:
    model = _adapted()
    if way == "loaded":
        model.save_pretrained(tmp_path)
        model = PeftModel.from_pretrained(tiny_model(dtype=torch.bfloat16), tmp_path, is_trainable=True)
    policy = Policy(model, "shared_prefix").train()
    if way == "copied":
        policy = copy.deepcopy(policy)
    with policy.model.disable_adapter():  # type: ignore[operator]
        casts_of_the_base = _casts_of_forward(policy)
    assert _casts_of_forward(policy) == casts_of_the_base
    if recompute:
        policy.recompute_activations()
    ours = _pass(policy)
    peft = _pass(_as_peft_has_it(policy))
    assert peft[0] - ours[0] >= (2 if recompute else 1) * 14
    _require_equal(ours, peft)


def _casts_of_forward(policy: Policy) -> int:
    packed = pack(PAIRS, CPU)
    with torch.no_grad(), _Casts(len(packed.tokens)) as casts, torch.autocast("cpu", torch.bfloat16):
        policy(packed)
    return casts.count


@pytest.mark.parametrize("recompute", [False, True])
def test_without_autocast_a_layer_casts_as_peft_has_it(recompute: bool) -> None:
    policy = Policy(_adapted(), "shared_prefix").train()
    if recompute:
        policy.recompute_activations()
    ours = _pass(policy, autocast=False)
    peft = _pass(_as_peft_has_it(policy), autocast=False)
    assert ours[0] == peft[0] >= 14
    _require_equal(ours, peft)


@pytest.mark.parametrize(("settings", "casts"), [({"dropout": 0.5}, 14), ({"use_dora": True}, 0)])
def test_dropout_and_the_float32_norms_of_dora_stay_as_peft_has_them(
    settings: dict[str, Any], casts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other number is dropped: random masks are other ones in another type."""
    monkeypatch.setattr(nn.Dropout, "forward", lambda _, x: x * (torch.arange(x.shape[-1]) % 2) * 2)
    policy = Policy(_adapted(**settings), "shared_prefix").train()
    ours = _pass(policy)
    peft = _pass(_as_peft_has_it(policy))
    assert peft[0] - ours[0] >= casts
    _require_equal(ours, peft)


@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_start_from_the_same_numbers_on_any_device(use_dora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The draw is made on the CPU; what stands for a card here holds no numbers, so the tensors drawn into tell."""
    drawn: list[str] = []
    right = nn.init.kaiming_uniform_

    def draw(tensor: Tensor, **options: Any) -> Tensor:
        drawn.append(tensor.device.type)
        return right(tensor, **options)

    monkeypatch.setattr(nn.init, "kaiming_uniform_", draw)
    model = add_adapters(tiny_model().to("meta"), LoraRecipe(rank=4, use_dora=use_dora))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert drawn
    assert set(drawn) == {"cpu"}


@pytest.mark.parametrize("use_rslora", [False, True])
def test_an_adapter_of_pissa_is_saved_as_plain_lora_beside_the_whole_weights(tmp_path: Path, use_rslora: bool) -> None:
    recipe = LoraRecipe(rank=4, alpha=6, init="pissa", use_rslora=use_rslora)
    ids = torch.randint(0, 400, (2, 12), generator=torch.Generator().manual_seed(0))
    plain = tiny_model()
    before = plain(input_ids=ids).logits
    model: Any = add_adapters(tiny_model(), recipe, seed=1)
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=1e-4)
    assert all(float(p.abs().sum()) > 0 for name, p in model.named_parameters() if "lora_B" in name)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    trained = model(input_ids=ids).logits
    assert float((trained - before).abs().max()) > 0.1
    save_adapters(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (recipe.saved_rank, True) == (8, True)
    read = PeftModel.from_pretrained(tiny_model(), tmp_path)
    torch.testing.assert_close(read(input_ids=ids).logits, trained, rtol=0, atol=1e-4)
    assert model.peft_config["default"].r == 4  # and can be trained further


def test_what_pissa_leaves_of_the_weights_does_not_depend_on_the_recipes_seed() -> None:
    """A checkpoint holds the trained matrices alone, and may be read under another seed."""
    one, other = (add_adapters(tiny_model(), LoraRecipe(rank=4, init="pissa"), seed) for seed in (1, 2))
    for weight, same in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, same)


def test_pissa_takes_the_main_components_of_a_weight() -> None:
    plain = tiny_model()
    adapted: Any = add_adapters(tiny_model(), LoraRecipe(rank=4, alpha=8, init="pissa"))
    layer = adapted.get_base_model().model.layers[1].mlp.up_proj
    weight = plain.model.layers[1].mlp.up_proj.weight.detach()
    update = 2 * layer.lora_B["default"].weight.detach() @ layer.lora_A["default"].weight.detach()
    torch.testing.assert_close(layer.base_layer.weight + update, weight, rtol=0, atol=1e-5)
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close(torch.linalg.svdvals(update)[:4], values[:4], rtol=0.02, atol=0)
    torch.testing.assert_close(torch.linalg.matrix_norm(layer.base_layer.weight, 2), values[4], rtol=0.05, atol=0)
