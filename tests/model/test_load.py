"""Model folders that go wrong: each says what, where and how to mend it, before any weight is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.load import count_parameters, find_model, load_model, weights_dtype
from simpo_cli.recipe.schema import LoraRecipe, ModelRecipe
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", dtype=torch.bfloat16)


def _copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


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


def test_adapters_are_counted_without_reading_weights(folder: Path) -> None:
    source = find_model(str(folder))
    counts = count_parameters(ModelRecipe(path=str(folder), lora=LoraRecipe(rank=4)), source)
    assert 0 < counts.trainable < counts.total


def _no_config(path: Path) -> None:
    (path / "config.json").unlink()


def _broken_config(path: Path) -> None:
    (path / "config.json").write_text("{", encoding="utf-8")


def _unknown_type(path: Path) -> None:
    _change_config(path, model_type="perceiver9000")


def _needs_code(path: Path) -> None:
    _change_config(path, model_type="mine", auto_map={"AutoConfig": "mine.Config"})


def _encoder(path: Path) -> None:
    (path / "config.json").write_text(json.dumps({"model_type": "vit"}), encoding="utf-8")


def _no_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def _pickled(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def _cut_weights(path: Path) -> None:
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def _missing_shard(path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _change_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    (path / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")


def _both_ways(path: Path) -> None:
    _change_config(path, model_type="bert", architectures=["BertLMHeadModel"])


def _classifier(path: Path) -> None:
    _change_config(path, architectures=["LlamaForSequenceClassification"])


def _list(path: Path) -> None:
    (path / "config.json").write_text("[]", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_no_config, "holds no config.json"),
        (_broken_config, "is no JSON"),
        (_unknown_type, "is not a model that transformers"),
        (_needs_code, "needs remote code"),
        (_encoder, "no causal language model"),
        (_both_ways, "reads text in both directions"),
        (_classifier, "holds a LlamaForSequenceClassification, which is no causal"),
        (_list, "is not a JSON object"),
        (_no_weights, "holds no weights"),
        (_pickled, "only pickled weights"),
        (_cut_weights, "cannot be read"),
        (_missing_shard, "lacks 1 of its 2 weight files"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_reason(
    folder: Path, tmp_path: Path, damage: object, problem: str
) -> None:
    copy = _copy(folder, tmp_path)
    damage(copy)  # type: ignore[operator]
    with pytest.raises(UserError, match=problem) as caught:
        find_model(str(copy))
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.fix
    assert str(copy) in str(caught.value)


def test_weights_of_another_configuration_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = _copy(folder, tmp_path)
    _change_config(copy, num_hidden_layers=3)
    with pytest.raises(UserError, match="lacks .* of its weights"):
        load_model(find_model(str(copy)), torch.float32)


@pytest.mark.parametrize("path", ["/no/such/folder", "./nowhere", "just-a-name"])
def test_a_path_that_is_not_there_never_goes_to_the_network(path: str) -> None:
    with pytest.raises(UserError, match="does not exist") as caught:
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


def test_a_file_is_not_a_model(folder: Path) -> None:
    with pytest.raises(UserError, match="is a file"):
        find_model(str(folder / "config.json"))


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


def test_on_a_cpu_nothing_is_said_of_devices(folder: Path, given: list[dict[str, Any]]) -> None:
    load_model(find_model(str(folder)), torch.float32)
    load_model(find_model(str(folder)), torch.float32, torch.device("cpu"))
    assert len(given) == 2
    assert not any("device_map" in options for options in given)


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
    config = tmp_path / "adapters" / "adapter_config.json"
    named = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**named, "base_model_name_or_path": str(folder)}), encoding="utf-8")
    given.clear()
    device = torch.device("meta")
    model = load_model(find_model(str(tmp_path / "adapters")), torch.bfloat16, device)
    assert given[0]["device_map"] == {"": device}
    assert any("lora_A" in name for name, _ in model.named_parameters())
    assert {parameter.device for parameter in model.parameters()} == {device}
