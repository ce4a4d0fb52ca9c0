"""The saved model: its type and its files, whole or not there."""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.attention.interface import NAME_WITHOUT_FLEX
from simpo_cli.model.load import load_model
from simpo_cli.model.policy import Policy
from simpo_cli.model.self_check import SelfCheck, choose_packing
from simpo_cli.model.source import find_model
from simpo_cli.publish.export import save_model, written_whole
from simpo_cli.recipe.schema import DataRecipe, DistributedRecipe, ExportRecipe, ModelRecipe, Recipe
from simpo_cli.train import build, outcome
from simpo_cli.train.loop import Training
from simpo_cli.train.outcome import _read_again, conclude
from tests.tiny import save_tiny_model
from tests.train.runs import guide_runs


@pytest.fixture
def start(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "start", dtype=torch.bfloat16)


@pytest.mark.parametrize("dies_at", range(1, 12))
def test_a_process_that_dies_while_it_replaces_a_model_leaves_no_half_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    """The process is gone at its nth call that removes or renames something, and what comes after does not happen."""
    calls = 0

    def dying(real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= dies_at:
                raise KeyboardInterrupt
            return real(*args, **options)

        return call

    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / name).write_text("old", encoding="utf-8")
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        for name in ("unlink", "rmdir", "rename"):
            patch.setattr(os, name, dying(getattr(os, name)))
        with written_whole(folder, replace=True) as temporary:
            temporary.mkdir(exist_ok=True)
            for name in ("a", "b", "c"):
                (temporary / name).write_text("new", encoding="utf-8")
    found = {file.name: file.read_text(encoding="utf-8") for file in folder.glob("*")}
    assert found in ({}, dict.fromkeys("abc", "old"), dict.fromkeys("abc", "new"))
    with written_whole(folder, replace=True) as temporary:
        temporary.mkdir(exist_ok=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("dtype", "expected"), [("auto", torch.bfloat16), ("fp32", torch.float32), ("fp16", torch.float16)]
)
def test_the_export_type_is_the_start_models_unless_the_recipe_says_otherwise_and_its_template_goes_with_it(
    start: Path, tmp_path: Path, dtype: Any, expected: torch.dtype
) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    data = DataRecipe(train="x", chat_template=str(template))
    recipe = Recipe(name="x", model=ModelRecipe(path=str(start)), data=data, export=ExportRecipe(dtype=dtype))
    source = find_model(str(start))
    rounding = save_model(tmp_path / "model", load_model(source, torch.float32), recipe, source, "# card\n")
    assert (rounding is None) == (dtype == "fp32")
    assert (tmp_path / "model" / "chat_template.jinja").read_text("utf-8") == template.read_text("utf-8")
    assert AutoConfig.from_pretrained(tmp_path / "model").dtype == expected
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == expected
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "generation_config.json"} <= names


def test_what_the_disk_refuses_inside_a_library_is_said_as_such_and_leaves_nothing(tmp_path: Path) -> None:
    def write(problem: str) -> None:
        with written_whole(tmp_path / "model") as folder:
            (folder / "half").write_bytes(b"x")
            raise SafetensorError(problem)

    with pytest.raises(OSError, match="No space left on device") as caught:
        write("Error while serializing: I/O error: No space left on device (os error 28)")
    assert caught.value.errno == 28
    with pytest.raises(SafetensorError, match="header"):
        write("header too large")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "gone" / "model"):
        pytest.fail("a folder that is gone came back")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_was_just_written_and_cannot_be_read_is_the_disks_fault(start: Path) -> None:
    (start / "model.safetensors").write_bytes(b"not what was written")
    run: Any = SimpleNamespace(
        strategy="none",
        weights=torch.float32,
        source=SimpleNamespace(quantization=None),
        accelerator=SimpleNamespace(device=torch.device("cpu")),
        recipe=SimpleNamespace(distributed=DistributedRecipe()),
    )
    with pytest.raises(UserError, match="was written to .* and cannot be read again: ") as caught:
        _read_again(start, run)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_the_saved_model_is_scored_by_the_kernels_that_were_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlexAttention that failed its check on a card would end a run behind its last step."""
    seen: list[tuple[bool, str]] = []

    def by_segment(policy: Policy, *rest: Any) -> SelfCheck:
        check = choose_packing(policy, *rest)
        policy.flex = False
        return replace(check, why_by_segment="it does not compile here")

    def concluded(training: Training, saved: Policy, *rest: Any, **more: Any) -> Any:
        with saved.packed("shared_prefix"):
            seen.append((saved.flex, saved.causal.config._attn_implementation))
        return conclude(training, saved, *rest, **more)

    monkeypatch.setattr(build, "choose_packing", by_segment)
    monkeypatch.setattr(outcome, "conclude", concluded)
    guide_runs(tmp_path).train("run", "model.attention=auto", "train.max_steps=1", "data.holdout=0")
    assert seen == [(False, NAME_WITHOUT_FLEX)]
