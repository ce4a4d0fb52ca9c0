"""An adapter as start model computes what peft computes, continued or merged; or it is refused before weights are."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.load import count_parameters, load_model, load_start
from simpo_cli.model.source import choose_adapter, find_model
from simpo_cli.recipe.schema import LoraRecipe, ModelRecipe
from tests.start_models.conftest import MakeAdapter
from tests.tiny import CHATML, change_json

IDS = torch.arange(24)[None]

LORA = {
    "plain": {},
    "all linear": {"target_modules": "all-linear"},
    "by expression": {"target_modules": r".*\.(q|o)_proj"},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "ranks by layer": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    "one layer": {"layers_to_transform": [1]},
    "on the head": {"target_modules": ["lm_head", "q_proj"]},
    "started by pissa": {"init_lora_weights": "pissa"},
    "without a task": {"task_type": None},
}
MORE = {
    "copies": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens": {"trainable_token_indices": [3, 5]},
    "biases": {"bias": "all"},
}


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=IDS).logits
    return logits


def _by_peft(folder: Path, base: Path) -> Tensor:
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return _logits(PeftModel.from_pretrained(plain, folder))


def _start(folder: Path, **settings: Any) -> tuple[ModelRecipe, nn.Module]:
    """The model that a recipe's training starts from, with its new adapters, which compute nothing yet."""
    source = find_model(str(folder))
    recipe = choose_adapter(ModelRecipe(path=str(folder), **settings), source)
    counted = count_parameters(recipe, source)
    model = load_start(recipe, source, torch.float32)
    if recipe.lora is not None and recipe.adapter == "merge":
        model = add_adapters(model, recipe.lora)
    parameters = list(model.parameters())
    assert counted.total == sum(p.numel() for p in parameters)
    assert counted.trainable == sum(p.numel() for p in parameters if p.requires_grad)
    return recipe, model


@pytest.mark.parametrize("kind", [*LORA, *MORE])
def test_a_merged_start_computes_what_peft_computes(kind: str, make_adapter: MakeAdapter, tiny_folder: Path) -> None:
    folder = make_adapter(**{**LORA, **MORE}[kind])
    wanted = _by_peft(folder, tiny_folder)
    assert float((wanted - _logits(AutoModelForCausalLM.from_pretrained(tiny_folder))).abs().max()) > 0.1
    for settings in ({}, {"lora": LoraRecipe(rank=2), "adapter": "merge"}):
        recipe, model = _start(folder, **settings)
        assert recipe.adapter == "merge"
        torch.testing.assert_close(_logits(model), wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(_logits(load_model(find_model(str(folder)), torch.float32)), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", LORA)
def test_a_continued_start_is_the_adapter_itself(kind: str, make_adapter: MakeAdapter, tiny_folder: Path) -> None:
    folder = make_adapter(**LORA[kind])
    recipe, model = _start(folder, lora=LoraRecipe())
    assert recipe.adapter == "continue"
    assert torch.equal(_logits(model), _by_peft(folder, tiny_folder))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_the_recipe_takes_what_the_adapter_says_and_keeps_its_own_dropout(make_adapter: MakeAdapter) -> None:
    recipe, model = _start(make_adapter(rank_pattern={"q_proj": 6}), lora=LoraRecipe())
    assert recipe.lora == LoraRecipe(rank=6, alpha=8, target_modules=["q_proj", "v_proj"], dropout=0.0)
    assert not any(isinstance(module, nn.Dropout) and module.p for module in model.modules())
    recipe, model = _start(make_adapter("other"), lora=LoraRecipe(dropout=0.25))
    assert recipe.lora is not None
    assert recipe.lora.dropout == 0.25
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout) and module.p} == {0.25}


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"rank": 8}, "model.lora.rank is 8, and .* has 4"),
        ({"alpha": 5}, "model.lora.alpha is 5.0, and .* has 8.0"),
        ({"target_modules": ["k_proj"]}, r"target_modules is \['k_proj'\], and .* has \['q_proj', 'v_proj'\]"),
        ({"use_dora": True}, "use_dora is True, and .* has False"),
    ],
)
def test_what_a_recipe_says_otherwise_is_refused(lora: dict[str, Any], said: str, make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    with pytest.raises(UserError, match=said) as caught:
        _start(folder, lora=LoraRecipe(**lora))
    assert "model.adapter=merge" in caught.value.fix
    assert _start(folder, lora=LoraRecipe(**lora), adapter="merge")[0].lora == LoraRecipe(**lora)
    same = LoraRecipe(rank=4, alpha=8, target_modules=["v_proj", "q_proj"])  # said twice, and no conflict
    assert _start(folder, lora=same)[0].adapter == "continue"


def test_model_adapter_is_about_adapters(tiny_folder: Path) -> None:
    with pytest.raises(UserError, match="holds no adapter"):
        _start(tiny_folder, adapter="merge")
    with pytest.raises(ValueError, match="is continue, and lora is null"):
        ModelRecipe(path="x", adapter="continue")


@pytest.mark.parametrize("kind", MORE)
def test_what_is_no_lora_is_not_continued(kind: str, make_adapter: MakeAdapter) -> None:
    with pytest.raises(UserError, match="also holds trained .*, and cannot be continued") as caught:
        _start(make_adapter(**MORE[kind]), lora=LoraRecipe())
    assert "model.adapter=merge" in caught.value.fix


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        ({"target_modules": ["lm_head"]}, "Continue it with model.lora={}"),
        ({"target_modules": ["embed_tokens"]}, "Continue it with model.lora={}"),
        ({"modules_to_save": ["lm_head"]}, "Train it again without modules_to_save"),
    ],
)
def test_a_change_of_one_of_two_shared_weights_is_not_merged(
    settings: dict[str, Any], fix: str, make_adapter: MakeAdapter, tied_folder: Path
) -> None:
    folder = make_adapter(base=tied_folder, **settings)
    for merged in ({}, {"lora": LoraRecipe(), "adapter": "merge"}):
        with pytest.raises(UserError, match="share their weights in this model") as caught:
            _start(folder, **merged)
        assert fix in caught.value.fix
    if "modules_to_save" in settings:
        with pytest.raises(UserError, match="cannot be continued") as caught:
            _start(folder, lora=LoraRecipe())
        assert fix in caught.value.fix
    else:
        assert torch.equal(_logits(_start(folder, lora=LoraRecipe())[1]), _by_peft(folder, tied_folder))


def test_an_adapter_on_an_adapter_is_merged_and_not_continued(make_adapter: MakeAdapter, tiny_folder: Path) -> None:
    lower, upper = make_adapter("lower"), make_adapter("upper", target_modules=["o_proj"])
    merged: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), lower)
    wanted = _logits(PeftModel.from_pretrained(merged.merge_and_unload(), upper))
    change_json(upper / "adapter_config.json", base_model_name_or_path=str(lower))
    with pytest.raises(UserError, match="lies on another adapter, and cannot be continued"):
        _start(upper, lora=LoraRecipe())
    torch.testing.assert_close(_logits(_start(upper)[1]), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alora_invocation_tokens": [1]}, "adapter_config.json sets alora_invocation_tokens"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "sets layer_replication"),
        ({"of_a_later_peft": True}, "sets of_a_later_peft"),
        ({"init_lora_weights": "loftq"}, "started by loftq"),
        ({"init_lora_weights": "pissa_niter_4"}, "started by pissa_niter_4"),
        ({"task_type": "SEQ_CLS"}, "for another task"),
        ({"r": "four"}, "does not describe adapters"),
        ({"r": 0}, "does not describe adapters"),
        ({"lora_alpha": None}, "does not describe adapters"),
        ({"target_modules": 3}, "does not describe adapters"),
        ({"rank_pattern": [1]}, "does not describe adapters"),
        ({"r": 3}, "does not fit the model under it: .*size mismatch"),
        ({"target_modules": ["q_proj"]}, "no place for 4 of its tensors"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "lacks 4 tensors"),
        ({"target_modules": ["w_proj"]}, "does not fit the model under it"),
    ],
)
def test_a_config_that_is_not_the_adapters_is_refused(
    changes: dict[str, Any], said: str, make_adapter: MakeAdapter
) -> None:
    folder = make_adapter()
    change_json(folder / "adapter_config.json", **changes)

    def prepare(lora: LoraRecipe | None) -> None:
        source = find_model(str(folder))
        count_parameters(choose_adapter(ModelRecipe(path="x", lora=lora), source), source)

    for lora in (None, LoraRecipe()):
        with pytest.raises(UserError, match=said) as caught:
            prepare(lora)
        assert caught.value.exit_code == ExitCode.USAGE
        assert caught.value.fix


def test_added_tokens_are_refused_with_the_way_out(make_adapter: MakeAdapter) -> None:
    folder = make_adapter(added_tokens=3, modules_to_save=["embed_tokens", "lm_head"])
    source = find_model(str(folder))
    with pytest.raises(UserError, match="size mismatch") as caught:
        count_parameters(ModelRecipe(path="x"), source)
    assert "merge the two in peft" in caught.value.fix


def test_biases_of_layers_without_one_and_numbers_that_are_none_are_not_merged(make_adapter: MakeAdapter) -> None:
    folder = make_adapter(lora_bias=True)
    with pytest.raises(UserError, match="has biases"):
        _start(folder)
    _start(folder, lora=LoraRecipe())
    folder = make_adapter("other")
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="infinite or NaN when it is merged"):
        _start(folder)


@pytest.mark.parametrize("place_of_base", ["beside", "inside", "above"])
def test_a_relative_base_is_found_from_the_adapters_folder(
    place_of_base: str, make_adapter: MakeAdapter, tiny_folder: Path
) -> None:
    folder = make_adapter("made/sft")
    spelled = {"beside": "base", "inside": "weights/base", "above": "../../base"}[place_of_base]
    shutil.copytree(tiny_folder, (folder.parent if place_of_base == "beside" else folder) / spelled)
    change_json(folder / "adapter_config.json", base_model_name_or_path=spelled)
    assert torch.equal(_logits(load_model(find_model(str(folder)), torch.float32)), _by_peft(folder, tiny_folder))


@pytest.mark.parametrize("base", ["nowhere", "./nowhere", "/no/such/folder", "~/no-such-model"])
def test_a_missing_base_is_named_with_the_fix(base: str, make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    change_json(folder / "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(UserError, match=f"trained beside the model {base}, which is not here") as caught:
        find_model(str(folder))
    assert caught.value.exit_code == ExitCode.USAGE
    assert f"base_model_name_or_path in {folder / 'adapter_config.json'}" in caught.value.fix


def test_builtin_guide_can_be_a_base(make_adapter: MakeAdapter) -> None:
    from simpo_cli.builtin import guide_model_dir

    folder = make_adapter(base=guide_model_dir())
    change_json(folder / "adapter_config.json", base_model_name_or_path="builtin:guide")
    assert torch.equal(_logits(_start(folder, lora=LoraRecipe())[1]), _by_peft(folder, guide_model_dir()))
    assert load_tokenizer(str(folder)).has_template


def test_template_and_end_tokens_come_from_the_base_where_the_adapter_has_none(
    make_adapter: MakeAdapter, tiny_folder: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    change_json(base / "generation_config.json", eos_token_id=[2, 77])
    folder = make_adapter(base=base)
    assert load_tokenizer(str(folder)).template_source == CHATML
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, folder / name)
    mine = load_tokenizer(str(folder))
    assert mine.template_source == CHATML
    assert mine.end_ids == load_tokenizer(str(base)).end_ids
    assert 77 in mine.end_ids
    (folder / "chat_template.jinja").write_text(CHATML + "{# its own #}", encoding="utf-8")
    assert load_tokenizer(str(folder)).template_source == CHATML + "{# its own #}"
    (folder / "tokenizer.json").unlink()
    assert load_tokenizer(str(folder)).template_source == CHATML + "{# its own #}"


def test_a_tokenizer_of_an_adapter_needs_no_base(make_adapter: MakeAdapter, tiny_folder: Path) -> None:
    folder = make_adapter()
    shutil.copyfile(tiny_folder / "tokenizer.json", folder / "tokenizer.json")
    change_json(folder / "adapter_config.json", base_model_name_or_path="/gone")
    assert load_tokenizer(str(folder)).template_source == ""
