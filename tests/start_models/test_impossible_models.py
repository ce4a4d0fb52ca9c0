"""Models that cannot be trained or scored as they are: refused in words, by every command, before weights are read."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from simpo_cli.data.model_files import quantisation_of
from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.load import count_parameters, load_model
from simpo_cli.model.source import find_model
from simpo_cli.recipe.schema import LoraRecipe, ModelRecipe
from tests.cli.seen import Simpo
from tests.start_models.conftest import MakeAdapter
from tests.tiny import change_json, save_tiny_model

QUANTISED: dict[str, Any] = {
    "bitsandbytes, 4 bits": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "bitsandbytes, 8 bits": {"load_in_8bit": True, "llm_int8_has_fp16_weight": True},
    "gptq, 3 bits": {"quant_method": "gptq", "bits": 3, "group_size": 64},
    "awq, 4 bits": {"quant_method": "awq", "w_bit": 4},
    "compressed-tensors": {"quant_method": "compressed-tensors", "config_groups": {}},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "mxfp4": {"quant_method": "mxfp4"},
    "hqq": {"quant_method": "hqq"},
    "of tomorrow": {"quant_method": "of tomorrow"},
    "a kind that it does not name": {},
    "'int4'": "int4",
}


@pytest.fixture
def model(tmp_path: Path, tiny_folder: Path) -> Path:
    """A model folder of this test's own."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "mine"))


def _refused(folder: Path) -> str:
    """What is said of a model before its weights are read."""

    def prepare() -> None:
        count_parameters(ModelRecipe(path=str(folder)), find_model(str(folder)))

    with pytest.raises(UserError) as caught:
        prepare()
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.fix
    return str(caught.value)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "is no JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is not a JSON object"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "vit"}'), "no causal language model"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "only pickled weights"),
        (lambda folder: os.truncate(folder / "model.safetensors", 20_000), "cannot be read"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}'
            ),
            "lacks 1 of its 2 weight files",
        ),
    ],
)
def test_a_damaged_folder_is_refused_with_the_reason(damage: Callable[[Path], Any], said: str, model: Path) -> None:
    damage(model)
    problem = _refused(model)
    assert said in problem
    assert str(model) in problem


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("section", [None, "text_config"])
def test_quantised_weights_are_refused_by_their_kind(kind: str, section: str | None, model: Path) -> None:
    settings = {"quantization_config": QUANTISED[kind]}
    change_json(model / "config.json", **(settings if section is None else {section: settings}))
    said = _refused(model)
    assert f"are quantised ({kind})" in said
    assert "Name the unquantised model that it was made from" in said


def test_nothing_is_not_quantised(model: Path) -> None:
    change_json(model / "config.json", quantization_config=None)
    find_model(str(model))
    assert quantisation_of({"a": {"b": {"quantization_config": {"quant_method": "x"}}}}) == "x"


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("org/Big-8B-Instruct-bnb-4bit", "org/Big-8B-Instruct"),
        ("org/big-8b-unsloth-bnb-4bit", "org/big-8b"),
        ("org/Big-8B-GPTQ-Int4", "org/Big-8B"),
        ("org/Big_8B.AWQ", "org/Big_8B"),
        ("org/Big-8B-FP8-dynamic", "org/Big-8B"),
        ("org/Big-8B-quantized.w4a16", "org/Big-8B-quantized"),
    ],
)
def test_the_name_of_the_plain_model_is_read_from_that_of_the_quantised(name: str, plain: str) -> None:
    from simpo_cli.data.model_files import quantised

    assert f"({plain}, by its name)" in quantised(name, "x").fix
    assert "by its name" not in quantised(plain, "x").fix


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_older_folders_say_it_in_a_file_beside(name: str, model: Path) -> None:
    (model / name).write_text(json.dumps({"bits": 4, "quant_method": "gptq"}), encoding="utf-8")
    assert "are quantised (gptq, 4 bits)" in _refused(model)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8, torch.int32])
def test_narrow_weights_are_seen_without_a_word_in_the_configuration(dtype: torch.dtype, model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert f"are quantised ({name} is of type" in _refused(model)


def test_masks_and_counters_are_no_quantised_weights(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.self_attn.bias"] = torch.ones(1, 8, dtype=torch.uint8)
    tensors["model.position_ids"] = torch.arange(8)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert find_model(str(model)).stored_dtype == torch.float32


@pytest.mark.parametrize(
    "words",
    [
        ("train", "run.yaml", "model.path=mine", "--dry-run"),
        ("train", "run.yaml", "model.path=mine"),
        ("train", "run.yaml", "model.path=mine", "model.lora={}"),
        ("inspect", "run.yaml", "model.path=mine"),
        ("eval", "mine", "--data", "prefs.jsonl"),
        ("eval", "run.yaml", "model.path=mine"),
        ("stats", "prefs.jsonl", "--recipe", "run.yaml", "--model", "mine"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantization_config": QUANTISED["bitsandbytes, 4 bits"]}, "bitsandbytes, 4 bits"),
        ({"hidden_act": "wobble"}, "hidden_act: 'wobble'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000"),
    ],
    ids=["quantised", "act", "layers"],
)
def test_every_command_refuses_them(
    words: tuple[str, ...], changes: dict[str, Any], said: str, simpo: Simpo, model: Path
) -> None:
    change_json(model / "config.json", **changes)
    seen = simpo(*words)
    assert seen.code == 2, seen.err
    assert said in " ".join(seen.err.split())
    assert "Traceback" not in seen.err
    assert not Path("runs").exists()


def test_tokens_are_shown_of_a_quantised_model_where_no_model_is_asked(simpo: Simpo, model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert simpo("inspect", "run.yaml", "model.path=mine", "-n", "1").code == 0


def test_a_quantised_base_is_named_with_the_place_that_names_it(model: Path, make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    change_json(model / "config.json", quantization_config=QUANTISED["awq, 4 bits"])
    change_json(folder / "adapter_config.json", base_model_name_or_path=str(model))
    said = _refused(folder)
    assert f"the weights of {model} are quantised (awq, 4 bits)" in said
    assert f"as base_model_name_or_path in {folder / 'adapter_config.json'}" in said


def test_a_run_whose_base_was_quantised_since_is_not_merged(simpo: Simpo, model: Path) -> None:
    assert simpo("train", "run.yaml", "model.path=mine", "model.lora={rank: 2}").code == 0
    change_json(model / "config.json", quantization_config=QUANTISED["fp8"])
    seen = simpo("export", "runs/tried", "--merge")
    assert seen.code == 2
    assert "are quantised (fp8)" in seen.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, which has to be from 1 to 2000"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, and the weight files hold 2 layers"),
        ({"num_hidden_layers": 1}, "num_hidden_layers is 1, and there is model.layers.1"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers: 'two'"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"hidden_size": -32}, "hidden_size is -32"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": 2**40}, "hidden_size is 1099511627776"),
        ({"hidden_size": 64}, "does not belong to its weights: by it model.embed_tokens.weight is of shape (400, 64)"),
        ({"hidden_size": 32.5}, "hidden_size: 32.5"),
        ({"intermediate_size": -1}, "intermediate_size is -1"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000"),
        ({"vocab_size": 401}, "model.embed_tokens.weight is of shape (401, 32), and 12,800 numbers are stored"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": 5}, "not a multiple of the number of attention heads (5)"),
        ({"num_key_value_heads": 3}, "k_proj.weight is of shape (24, 32)"),
        ({"head_dim": 7}, "head_dim: 7"),
        ({"num_local_experts": 10**7}, "num_local_experts is 10000000"),
        ({"max_position_embeddings": -1}, "max_position_embeddings is -1"),
        ({"sliding_window": -4}, "sliding_window is -4"),
        ({"hidden_act": "wobble"}, "hidden_act: 'wobble'"),
        ({"rope_parameters": {"rope_type": "wobble"}}, "rope_type: 'wobble'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "rope_theta is 'x', which is no number"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "Missing required keys"),
        ({"rope_parameters": 3}, "rope_parameters: 3"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small', which is no number"),
        ({"dtype": "float7"}, "dtype: 'float7'"),
        ({"pad_token_id": 4000}, "Padding_idx"),
        ({"model_type": "unheard_of"}, "is not a model that transformers"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}, "needs remote code"),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"]}, "reads text in both directions"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "holds a LlamaForSequenceClassification, which is no"),
        ({"text_config": {"num_hidden_layers": 10**8}}, "num_hidden_layers is 100000000"),
    ],
    ids=lambda one: str(one)[:60] if isinstance(one, dict) else "",
)
def test_a_configuration_that_is_none_is_refused_with_key_and_reason(
    changes: dict[str, Any], said: str, model: Path
) -> None:
    change_json(model / "config.json", **changes)
    assert said in _refused(model)


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size", "model_type"])
def test_a_key_that_is_missing_is_not_guessed(key: str, model: Path) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    del config[key]
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _refused(model)


def test_layers_behind_the_last_that_predict_further_tokens_are_left_out(model: Path) -> None:
    change_json(model / "config.json", num_hidden_layers=1, num_nextn_predict_layers=1)
    count_parameters(ModelRecipe(path="x"), find_model(str(model)))


def test_weights_that_break_while_they_are_read_are_no_bug_of_ours(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any, **__: Any) -> None:
        raise KeyError("wobble")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", breaks)
    with pytest.raises(UserError, match="the weights of .* do not load: 'wobble'"):
        load_model(find_model(str(model)), torch.float32)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "extra.safetensors",
    ],
)
def test_what_is_no_file_is_never_read(
    name: str, kind: str, model: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model)  # the path of a socket is short
    (model / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(name)
    elif kind == "socket":
        opened = socket.socket(socket.AF_UNIX)
        request.addfinalizer(opened.close)
        opened.bind(name)
    else:
        os.symlink("/dev/zero", name)
    readers = [load_tokenizer] if name.startswith(("tokenizer", "chat")) else [find_model, load_tokenizer]
    for reader in readers:
        with pytest.raises(UserError, match=r"is a (pipe|socket or a device), not a file|holds no config.json"):
            reader(str(model))  # type: ignore[operator]


def test_peft_says_why_it_takes_no_layer() -> None:
    """As of Falcon-H1, whose mixing layers take no adapters: all-linear is refused, and the fix that is given works."""
    from transformers import AutoConfig

    def empty() -> Any:
        config = AutoConfig.for_model("falcon_h1", num_hidden_layers=1)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)

    with pytest.raises(UserError, match="Module 'out_proj' is incompatible with Mamba-based models") as caught:
        add_adapters(empty(), LoraRecipe(rank=2))
    named = caught.value.fix.split("model.lora.target_modules=[")[1].removesuffix("]").split(",")
    assert "base_layer" not in named
    add_adapters(empty(), LoraRecipe(rank=2, target_modules=named))


def test_a_target_that_is_not_there_is_still_told_with_those_that_are(tmp_path: Path) -> None:
    source = find_model(str(save_tiny_model(tmp_path / "tiny")))
    with pytest.raises(UserError, match="matches no layer of this model") as caught:
        count_parameters(ModelRecipe(path="x", lora=LoraRecipe(target_modules=["w_proj"])), source)
    assert "q_proj" in caught.value.fix
