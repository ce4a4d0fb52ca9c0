"""The same run on a CUDA device; skipped where there is none."""

from pathlib import Path

import pytest
import torch

from simpo_cli.model.tensor_file import read_tensors, write_tensors
from simpo_cli.run.checkpoint import CheckpointWriter
from simpo_cli.run.manifest import Checkpoint, Manifest
from tests.train.conftest import Memory
from tests.train.guide import train_tiny

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def _losses(tmp_path: Path, tiny_folder: Path, prefs: Path, precision: str) -> list[float]:
    memory = Memory()
    train_tiny(tmp_path, tiny_folder, prefs, f"train.precision={precision}", observer=memory)
    return [record.loss for record in memory.steps]


def test_a_run_on_cuda_in_float32_follows_the_run_on_a_cpu(
    tmp_path: Path, tiny_folder: Path, prefs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cuda", "cpu"):
        (tmp_path / name).mkdir()
    on_cuda = _losses(tmp_path / "cuda", tiny_folder, prefs, "fp32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert on_cuda == pytest.approx(_losses(tmp_path / "cpu", tiny_folder, prefs, "fp32"), rel=1e-2)


def test_bf16_autocast_learns_on_cuda(tmp_path: Path, tiny_folder: Path, prefs: Path) -> None:
    losses = _losses(tmp_path, tiny_folder, prefs, "bf16")
    assert losses[-1] < losses[0]


def test_tensors_of_a_card_are_saved_as_those_of_a_cpu_and_come_back(tmp_path: Path) -> None:
    sizes = {"step": (), "empty": (0, 3), "odd": (70_000_001,), "matrix": (4096, 5001)}  # the odd one is five pieces
    tensors = {name: torch.randn(size) for name, size in sizes.items()}
    writer = CheckpointWriter(tmp_path)
    with writer.open("cpu") as file:
        write_tensors(file, tensors)
    with writer.open("cuda") as file:
        write_tensors(file, {name: tensor.cuda() for name, tensor in tensors.items()})
    assert writer.files["cuda"] == writer.files["cpu"]
    into = {name: torch.zeros(size, device="cuda") for name, size in sizes.items()}
    with Checkpoint(tmp_path, Manifest(1, 1, {}, writer.files)).open("cuda") as reader:
        read_tensors(reader, into)
    assert all(torch.equal(into[name].cpu(), tensors[name]) for name in tensors)
