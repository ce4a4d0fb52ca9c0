"""Pickled payloads: a file that would run code when it is read is refused, or, beside safetensors, never opened."""

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.load import load_model
from simpo_cli.model.source import find_model
from tests.cli.seen import Simpo
from tests.tiny import change_json

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
NOT_BESIDE = [
    "pytorch_model.bin",
    "../evil.safetensors",
    "/etc/evil.safetensors",
    "sub/a.safetensors",
    "",
    "..",
    None,
    3,
]
FIRST = ("adapter_config.json", "model.safetensors.index.json")  # read before the tokenizer

_watch: dict[str, Any] = {"on": False, "seen": []}


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Python tells of every file that is opened and of every name that is unpickled; a hook cannot be taken away."""
    is_read = event == "open" and str(arguments[0]).endswith(PICKLED) and str(arguments[1])[:1] not in ("w", "x")
    if _watch["on"] and (is_read or event == "pickle.find_class"):
        _watch["seen"].append((event, *map(str, arguments[:2])))


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    """What was unpickled, and which pickled files were opened, while the test ran."""
    if "hooked" not in _watch:
        sys.addaudithook(_hook)
        _watch["hooked"] = True
    _watch.update(on=True, seen=[])
    yield _watch["seen"]
    _watch["on"] = False


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.fixture
def bomb(tmp_path: Path) -> bytes:
    return pickle.dumps(Payload(tmp_path / "ran"))


@pytest.fixture
def model(tmp_path: Path, tiny_folder: Path) -> Path:
    """A model folder of this test's own."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))


def _adapters(folder: Path, base: Path, **more: Any) -> Path:
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj"], **more}))
    return folder


def test_the_payload_of_these_tests_runs(tmp_path: Path, bomb: bytes, opened: list[Any]) -> None:
    pickle.loads(bomb)
    assert (tmp_path / "ran").is_dir()
    assert [event for event, *_ in opened] == ["pickle.find_class"]


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "adapter_model.bin", "x.ckpt"]
)
def test_a_folder_of_pickled_weights_only_is_refused(name: str, model: Path, bomb: bytes, opened: list[Any]) -> None:
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(bomb)
    with pytest.raises(UserError, match="only pickled weights, which can run code") as caught:
        find_model(str(model))
    assert caught.value.exit_code == ExitCode.USAGE
    assert not opened


@pytest.mark.parametrize("name", NOT_BESIDE)
def test_an_index_names_safetensors_beside_it_and_nothing_else(
    name: Any, model: Path, bomb: bytes, opened: list[Any]
) -> None:
    shutil.copyfile(model / "model.safetensors", model.parent / "evil.safetensors")
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(bomb)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="no safetensors file beside it"):
        find_model(str(model))
    assert not opened


@pytest.mark.parametrize("content", [[], {}, {"weight_map": []}, {"weight_map": None}])
def test_an_index_that_is_none(content: Any, model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(UserError):
        find_model(str(model))


@pytest.mark.parametrize("named", ["adapter_model.bin", "pytorch_model.bin", "../tiny/model.safetensors"])
def test_a_configuration_cannot_name_another_file_of_weights(named: str, model: Path, bomb: bytes) -> None:
    (model / "adapter_model.bin").write_bytes(bomb)
    change_json(model / "config.json", transformers_weights=named)
    with pytest.raises(UserError, match="as the file of its weights, which is not loaded"):
        find_model(str(model))


def test_adapters_are_safetensors_too(tmp_path: Path, model: Path, bomb: bytes, opened: list[Any]) -> None:
    folder = _adapters(tmp_path / "adapters", model)
    with pytest.raises(UserError, match=r"holds no weights \(adapter_model.safetensors\)"):
        find_model(str(folder))
    (folder / "adapter_model.bin").write_bytes(bomb)
    with pytest.raises(UserError, match="only pickled weights"):
        find_model(str(folder))
    assert not opened
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "config",
    [
        {"peft_type": "MULTITASK_PROMPT_TUNING", "prompt_tuning_init_state_dict_path": "adapter_model.bin"},
        {"peft_type": "CARTRIDGE"},
        {"peft_type": None},
        {"megatron_config": {"a": 1}, "megatron_core": "evil"},
    ],
)
def test_adapters_that_bring_files_or_modules_of_their_own_are_refused(
    config: dict[str, Any], tmp_path: Path, model: Path
) -> None:
    folder = _adapters(tmp_path / "adapters", model, **config)
    shutil.copyfile(model / "model.safetensors", folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="LoRA adapters are what is loaded here"):
        find_model(str(folder))


@pytest.mark.parametrize("base", ["itself", "one another", "none", "a number"])
def test_adapters_of_themselves_end(base: str, tmp_path: Path, model: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    _adapters(one, {"itself": one, "one another": other}.get(base, model))
    _adapters(other, one)
    for folder in (one, other):
        shutil.copyfile(model / "model.safetensors", folder / "adapter_model.safetensors")
    if base in ("none", "a number"):
        change_json(one / "adapter_config.json", base_model_name_or_path={"none": None, "a number": 3}[base])
    with pytest.raises(UserError, match="adapters of themselves|names no base_model_name_or_path"):
        find_model(str(one))
    with pytest.raises(UserError, match="has no tokenizer.json"):
        load_tokenizer(str(one))


def test_what_lies_beside_safetensors_is_never_opened(
    simpo: Simpo, place: Path, model: Path, bomb: bytes, opened: list[Any]
) -> None:
    for name in ("pytorch_model.bin", "optimizer.pt", "rng_state.pth", "training_args.bin", "scheduler.pt", "x.pkl"):
        (model / name).write_bytes(bomb)
    words = (f"model.path={model}", "checkpoint.every=1", "model.lora={rank: 2}")
    assert simpo("train", "run.yaml", *words).code == 0
    for folder in ("runs/tried", "runs/tried/model", "runs/tried/checkpoints/step-00000002", "cache/tokens"):
        (place / folder / "training_args.bin").write_bytes(bomb)
    (place / "runs/tried/checkpoints/step-00000002/training_args.bin").unlink()  # a file too many is damage
    assert simpo("train", "run.yaml", *words, "--resume", "train.max_steps=3").code == 0
    assert simpo("eval", "runs/tried").code == 0
    assert simpo("export", "runs/tried", "--merge").code == 0
    ours = [one for one in opened if not one[1].startswith(("torch", "numpy", "collections"))]
    assert [one for one in ours if not one[1].endswith(("pairs.bin", "rows.bin"))] == []
    assert not (place / "ran").exists()
    written = [file for file in (place / "runs").rglob("*") if file.is_file() and file.name != "training_args.bin"]
    kinds = {file.suffix or file.name for file in written}
    assert kinds == {".safetensors", ".json", ".jsonl", ".yaml", ".html", ".md", ".jinja", ".lock", ".owner"}


def test_a_model_that_is_whole_loads(model: Path, bomb: bytes, opened: list[Any]) -> None:
    (model / "pytorch_model.bin").write_bytes(bomb)
    load_model(find_model(str(model)), torch.float32)
    assert [one for one in opened if one[0] == "open"] == []


@pytest.mark.parametrize(
    "file", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", *FIRST]
)
def test_json_nested_without_end_is_an_error_with_a_place(file: str, model: Path) -> None:
    (model / file).write_text("[" * 200_000)
    with pytest.raises(UserError) as caught:
        (find_model if file in FIRST else load_tokenizer)(str(model))
    assert file in str(caught.value)
