"""A model's own Python code: not loaded unasked, whatever its files ask for; and a recipe cannot ask for it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.load import find_model, load_model
from simpo_cli.recipe import compose

MAP = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Slow", "evil.Fast"]}


@pytest.fixture
def model(tmp_path: Path, tiny_folder: Path) -> Path:
    """A model folder whose files name code that makes a folder when it is imported."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))
    for name in ("evil.py", "modeling_evil.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    _change(folder / "config.json", auto_map=MAP, trust_remote_code=True)
    _change(folder / "tokenizer_config.json", auto_map=MAP, tokenizer_class="evil.Fast", trust_remote_code=True)
    return folder


def _change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**content, **values}))


def test_a_known_model_is_loaded_with_the_classes_of_transformers(model: Path, tmp_path: Path) -> None:
    loaded = load_model(find_model(str(model)), torch.float32)
    assert type(loaded).__module__.startswith("transformers.")
    assert load_tokenizer(str(model)).has_template
    assert not (tmp_path / "ran").exists()


def test_what_was_not_run_is_not_asked_for_by_the_model_that_is_saved(model: Path, tmp_path: Path) -> None:
    saved: Any = load_model(find_model(str(model)), torch.float32)
    saved.save_pretrained(tmp_path / "saved")
    assert "auto_map" not in json.loads((tmp_path / "saved" / "config.json").read_text())


def test_a_model_that_needs_its_code_is_refused(model: Path, tmp_path: Path) -> None:
    _change(model / "config.json", model_type="evil")
    with pytest.raises(UserError, match="needs Python code of its own to run") as caught:
        find_model(str(model))
    assert caught.value.exit_code == ExitCode.USAGE
    assert "Read its code first; --trust-remote-code runs it." in caught.value.fix
    assert not (tmp_path / "ran").exists()


def test_a_known_configuration_whose_model_is_not(model: Path, tmp_path: Path) -> None:
    """As of models of images that somebody has put a causal language model around."""
    (model / "config.json").write_text(json.dumps({"model_type": "vit", "auto_map": MAP}))
    with pytest.raises(UserError, match="needs Python code of its own to run"):
        find_model(str(model))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("inside", [False, True])
def test_code_of_the_hub_cannot_be_asked_for(key: str, inside: bool, model: Path) -> None:
    asked = {key: "evil/kernel"}
    _change(model / "config.json", **({"text_config": asked} if inside else asked))
    with pytest.raises(UserError, match=f"asks for code of the hub .{key}: 'evil/kernel'"):
        find_model(str(model))


@pytest.mark.parametrize("key", ["model.trust_remote_code", "trust_remote_code", "data.trust_remote_code"])
def test_a_recipe_cannot_ask_for_it(key: str) -> None:
    with pytest.raises(UserError, match="is not a key of"):
        compose("demo", [f"{key}=true"])
