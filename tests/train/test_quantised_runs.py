"""Whole runs beside quantised weights: trained, saved, scored again and merged, or refused before weights are read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.load import load_model
from simpo_cli.model.source import find_model
from simpo_cli.publish.merge import merge_adapters
from simpo_cli.train import build
from simpo_cli.versions import install_command
from tests.cli.seen import typed
from tests.tiny import save_tiny_model
from tests.train.runs import Runs, tiny_runs

LORA = ("model.lora.rank=4", "train.learning_rate=1e-2", "train.num_epochs=2", "train.warmup_ratio=0")


@pytest.fixture(scope="module", params=["nf4", "int8"])
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, prefs: Path
) -> Runs:
    """With a run beside quantised weights."""
    made = tiny_runs(tmp_path_factory.mktemp("runs"), tiny_folder, prefs, *LORA, f"model.quantization={request.param}")
    made.train("run")
    return made


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose weights are stored in 4 bits."""
    folder = tmp_path_factory.mktemp("models")
    whole = save_tiny_model(folder / "whole", dtype=torch.bfloat16)
    model: Any = load_model(find_model(str(whole), quantization="nf4"), torch.bfloat16)
    save_tiny_model(folder / "nf4")
    (folder / "nf4" / "model.safetensors").unlink()
    model.save_pretrained(folder / "nf4")
    return folder / "nf4"


def test_a_run_learns_and_says_how_its_weights_are_held(runs: Runs) -> None:
    receipt = runs.receipt("run")
    kind = receipt["model"]["quantization"]
    before, after = (receipt["outcome"][part]["accuracy"]["value"] for part in ("before", "after"))
    assert after > before
    assert kind in runs.train("other", dry_run=True).lines["model"]
    assert (runs.folder / "run" / "model" / "adapter_model.safetensors").is_file()
    assert not (runs.folder / "run" / "model" / "model.safetensors").exists()


def test_the_run_is_scored_again_beside_the_weights_that_it_was_trained_beside(
    runs: Runs, capfd: pytest.CaptureFixture[str]
) -> None:
    simpo = typed(capfd)
    for name in ("run", "run/model"):
        seen = simpo("eval", str(runs.folder / name), "--json")
        assert seen.code == 0, seen.err
        scored, trained = json.loads(seen.out), runs.receipt("run")["outcome"]["after"]
        assert scored["loss"]["value"] == pytest.approx(trained["loss"]["value"], abs=1e-4)
        assert scored["margin"]["value"] == pytest.approx(trained["margin"]["value"], abs=1e-3)
        assert scored["baseline"]["loss"]["value"] == pytest.approx(
            runs.receipt("run")["outcome"]["before"]["loss"]["value"], abs=1e-4
        )


def test_a_merge_is_scored_beside_the_quantised_model(runs: Runs, tmp_path: Path) -> None:
    merged = merge_adapters(runs.folder / "run", tmp_path / "merged")
    assert merged.unrounded is not None
    assert merged.unrounded.trained["loss"]["value"] == pytest.approx(
        runs.receipt("run")["outcome"]["after"]["loss"]["value"], abs=1e-4
    )
    whole: Any = load_model(find_model(str(runs.folder / "run" / "model")), torch.float32)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    own = load_model(find_model(str(tmp_path / "merged")), torch.float32)(input_ids=ids).logits
    torch.testing.assert_close(own, whole(input_ids=ids).logits, rtol=0, atol=1e-4)
    rounded: Any = load_model(find_model(str(runs.folder / "run" / "model"), quantization="nf4"), torch.float32)
    assert float((own - rounded(input_ids=ids).logits).abs().max()) > 1e-3
    difference = merged.unrounded.merged["loss"]["value"] - merged.unrounded.trained["loss"]["value"]
    assert merged.unrounded.difference["loss"]["value"] == pytest.approx(difference, abs=1e-9)
    assert difference != 0
    assert str(merged.unrounded) in (tmp_path / "merged" / "README.md").read_text("utf-8")


def test_adapters_train_beside_weights_that_are_stored_quantised(stored: Path, tmp_path: Path, prefs: Path) -> None:
    runs = tiny_runs(tmp_path, stored, prefs, *LORA)
    memory = runs.train("run")
    assert memory.evals[-1].accuracy > memory.evals[0].accuracy
    assert runs.receipt("run")["model"]["quantization"] == "nf4"
    with pytest.raises(UserError, match="are stored quantised .nf4.: nothing merges into them"):
        merge_adapters(tmp_path / "run", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("model", "more", "problem"),
    [
        ("tiny", ["model.quantization=nf4"], "quantization is nf4, and lora is null"),
        ("tiny", ["model.quantization=nf4", "model.lora={init: pissa}"], "quantization is nf4, and lora.init is pissa"),
        ("tiny", ["model.quantization=int8", "model.lora={}", "model.adapter=merge"], "and adapter is merge"),
        ("tiny", ["model.lora={init: pissa, use_dora: true}"], "init is pissa, and use_dora is true"),
        (
            "tiny",
            ["model.lora={init: pissa}", "model.weights_dtype=bf16"],
            "init is pissa, and the frozen weights are bf",
        ),
        ("tiny", ["model.lora={init: pissa, rank: 17}"], "init is pissa, and .*k_proj has no 17 components to give"),
        (
            "tiny",
            ["model.lora={init: pissa, rank: 4, target_modules: [q_proj, up_proj, embed_tokens]}"],
            "init is pissa, and .*embed_tokens has no 4 components to give",
        ),
        ("tiny", ["model.quantization=nf4", "model.lora={}", "model.compile=true"], "compile is true, and the weights"),
        (
            "tiny",
            ["model.quantization=nf4", "model.lora={}", "distributed.strategy=fsdp2"],
            "quantization is not for fsdp2",
        ),
        ("tiny", ["model.lora={target_modules: [qproj]}"], "matches no layer of this model.*"),
        ("stored", [], "are quantised .nf4., and cannot be trained themselves"),
        ("stored", ["model.quantization=int8", "model.lora={}"], "quantization is int8, and .* are stored as nf4"),
    ],
)
def test_wrong_mixes_are_refused_before_weights_are_read(
    model: str,
    more: list[str],
    problem: str,
    tmp_path: Path,
    tiny_folder: Path,
    stored: Path,
    prefs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "load_start", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(UserError, match=problem) as caught:
        tiny_runs(tmp_path, stored if model == "stored" else tiny_folder, prefs).train("run", *more)
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.fix
    if any("qproj" in one for one in more):
        assert "Did you mean q_proj" in caught.value.fix


def test_without_bitsandbytes_the_pip_line_is_said(
    tmp_path: Path, tiny_folder: Path, prefs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simpo_cli.versions.find_spec", lambda _: None)
    with pytest.raises(UserError, match="needs the package bitsandbytes, which is not installed") as caught:
        tiny_runs(tmp_path, tiny_folder, prefs).train("run", "model.quantization=nf4", "model.lora={}")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert install_command("quant") in caught.value.fix
    assert find_model(str(tiny_folder), quantization="nf4", weights=False).quantization == "nf4"  # as simpo plan does
