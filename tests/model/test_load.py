"""A model from its folder: found, counted, loaded onto the device that computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

from simpo_cli import SimPOConfig, SimPOTrainer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.load import count_parameters, load_model
from simpo_cli.model.source import find_model, weights_dtype
from simpo_cli.recipe.schema import LoraRecipe, ModelRecipe
from tests.tiny import change_json, save_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", dtype=torch.bfloat16)


def test_a_good_folder(folder: Path) -> None:
    source = find_model(str(folder))
    assert source.stored_dtype == torch.bfloat16
    assert source.max_length == 512
    assert source.revision is None
    counts = count_parameters(ModelRecipe(path=str(folder)), source)
    model = load_model(source, torch.float32)
    assert counts.total == counts.trainable == sum(p.numel() for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_weights_are_float32_for_full_tuning_and_as_stored_under_adapters(folder: Path) -> None:
    source = find_model(str(folder))
    assert weights_dtype(ModelRecipe(path="x"), source) == torch.float32
    assert weights_dtype(ModelRecipe(path="x", lora=LoraRecipe()), source) == torch.bfloat16
    assert weights_dtype(ModelRecipe(path="x", weights_dtype="bf16"), source) == torch.bfloat16


def test_weights_that_are_not_in_the_file_are_refused_and_not_drawn_at_random(tmp_path: Path) -> None:
    copy = save_tiny_model(tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 of its weights, such as model.norm.weight"):
        load_model(find_model(str(copy)), torch.float32)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/no/such/folder", "does not exist"),
        ("./nowhere", "does not exist"),
        ("just-a-name", "does not exist"),
        (__file__, "is a file"),
    ],
)
def test_a_path_that_is_no_folder_never_goes_to_the_network(path: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        find_model(path)
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_hub_id_without_a_network_is_an_environment_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the model hub did not give it") as caught:
        find_model("nobody/no-such-model")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_a_model_of_the_hub_can_be_asked_for_only_if_it_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[bool] = []

    def snapshot_download(*_: object, local_files_only: bool, **__: object) -> str:
        asked.append(local_files_only)
        raise FileNotFoundError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match="the weights of nobody/no-such-model are not on this machine"):
        find_model("nobody/no-such-model", fetch=False)
    assert asked == [True]


def test_dropout_is_off(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "gpt", model_type="gpt2", attention_dropout=0.3, resid_pdrop=0.2, embd_pdrop=0.1)
    model = load_model(find_model(str(tmp_path / "gpt")), torch.float32).train()
    ids = torch.arange(20)[None]
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What transformers is asked for."""
    asked: list[dict[str, Any]] = []
    right = AutoModelForCausalLM.from_pretrained

    def from_pretrained(*args: Any, **options: Any) -> Any:
        asked.append(options)
        return right(*args, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    return asked


def test_weights_are_read_onto_the_device_that_computes(folder: Path, given: list[dict[str, Any]]) -> None:
    device = torch.device("meta")  # stands for a card
    model = load_model(find_model(str(folder)), torch.bfloat16, device)
    assert given[0]["device_map"] == {"": device}
    assert given[0]["dtype"] == torch.bfloat16
    assert {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {device}
    load_model(find_model(str(folder)), torch.float32)
    load_model(find_model(str(folder)), torch.float32, torch.device("cpu"))
    assert len(given) == 3
    assert not any("device_map" in options for options in given[1:])


def test_what_is_read_with_a_device_map_is_the_same_to_the_bit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers that no file holds included, such as the frequencies of rotary embeddings."""
    source = find_model(str(folder))
    plain = load_model(source, torch.float32)
    right = AutoModelForCausalLM.from_pretrained

    def onto_the_cpu(*args: Any, **options: Any) -> Any:
        return right(*args, **{**options, "device_map": {"": torch.device("cpu")}})

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", onto_the_cpu)
    mapped = load_model(source, torch.float32, torch.device("cuda", 0))
    named = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    assert any("inv_freq" in name for name in named)
    for name, tensor in (*mapped.named_parameters(), *mapped.named_buffers()):
        assert torch.equal(tensor, named.pop(name)), name
    assert not named
    ids = torch.arange(20)[None]
    assert torch.equal(plain(input_ids=ids).logits, mapped(input_ids=ids).logits)


@pytest.mark.filterwarnings("ignore:.*to a meta parameter")
def test_adapters_go_where_their_base_is(folder: Path, tmp_path: Path, given: list[dict[str, Any]]) -> None:
    base: Any = load_model(find_model(str(folder)), torch.bfloat16)
    adapted: Any = add_adapters(base, LoraRecipe(rank=4))
    adapted.save_pretrained(tmp_path / "adapters")
    change_json(tmp_path / "adapters" / "adapter_config.json", base_model_name_or_path=str(folder))
    given.clear()
    device = torch.device("meta")
    model = load_model(find_model(str(tmp_path / "adapters")), torch.bfloat16, device)
    assert given[0]["device_map"] == {"": device}
    assert any("lora_A" in name for name, _ in model.named_parameters())
    assert {parameter.device for parameter in model.parameters()} == {device}


# What older releases of transformers do otherwise, put on the one that is here: `make test-oldest` runs a real one


def test_models_that_are_loaded_or_given_to_the_library_apply_their_soft_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a transformers that takes torch's SDPA for a capped model, as those before 5.21 do."""
    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)
    gemma2, ids = save_tiny_model(tmp_path, model_type="gemma2", attn_logit_softcapping=0.5), torch.arange(1, 60)[None]
    right = AutoModelForCausalLM.from_pretrained(gemma2, attn_implementation="eager")(ids).logits
    plain: Any = AutoModelForCausalLM.from_pretrained(gemma2)
    assert plain.config._attn_implementation == "sdpa"  # else nothing is tested
    for model in (load_model(find_model(str(gemma2)), torch.float32), SimPOTrainer(plain, SimPOConfig()).model):
        torch.testing.assert_close(model(input_ids=ids).logits, right)


def test_models_without_a_cap_keep_their_attention(tmp_path: Path) -> None:
    for name, changes in (("llama", {}), ("gemma2", {"attn_logit_softcapping": None})):
        folder = save_tiny_model(tmp_path / name, model_type=name, **changes)
        model: Any = load_model(find_model(str(folder)), torch.float32)
        own = AutoModelForCausalLM.from_pretrained(folder).config._attn_implementation
        assert model.config._attn_implementation == own
