"""Our safetensors files against the library's own."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from simpo_cli.train.checkpoint import CheckpointWriter, HashedReader
from simpo_cli.train.tensor_file import TensorMismatchError, read_tensors, write_tensors


def _tensors(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    return {
        "b.half": random(3, 5).to(torch.bfloat16),
        "a.weight": random(4, 7),
        "step": torch.tensor(3.0),
        "empty": random(0, 4),
        "transposed": random(5, 2).t(),
        "double": random(3).double(),
    }


def _write(folder: Path, tensors: dict[str, Tensor]) -> Path:
    with CheckpointWriter(folder).open("x.safetensors") as file:
        write_tensors(file, tensors)
    return folder / "x.safetensors"


def _read(file: Path, into: dict[str, Tensor]) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        read_tensors(HashedReader(descriptor), into)
    finally:
        os.close(descriptor)


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors = _tensors(0)
    loaded = load_file(_write(tmp_path, tensors))
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert all(loaded[name].dtype == tensors[name].dtype for name in tensors)


def test_we_read_what_the_library_writes_and_what_we_write(tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in _tensors(0).items()}
    save_file(tensors, tmp_path / "theirs.safetensors")
    for file in (tmp_path / "theirs.safetensors", _write(tmp_path, tensors)):
        into = _tensors(1)
        _read(file, into)
        assert all(torch.equal(into[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("step"), "step is only in the checkpoint"),
        (lambda t: t.update(more=torch.zeros(2)), "more is only in the model"),
        (lambda t: t.update(step=torch.zeros(2)), r"step is float32 \(\) in the checkpoint and float32 \(2,\) in"),
        (lambda t: t.update(double=torch.zeros(3)), r"double is float64 \(3,\) in the checkpoint and float32"),
    ],
)
def test_other_tensors_are_refused_by_name(tmp_path: Path, change: object, said: str) -> None:
    file = _write(tmp_path, _tensors(0))
    into = _tensors(1)
    change(into)  # type: ignore[operator]
    with pytest.raises(TensorMismatchError, match=said):
        _read(file, into)
