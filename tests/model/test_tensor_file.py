"""Our safetensors files against the library's own."""

import filecmp
import os
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from simpo_cli.model import tensor_file
from simpo_cli.model.backend import BACKENDS
from simpo_cli.model.tensor_file import TensorMismatchError, read_tensors, write_tensors
from simpo_cli.run.checkpoint import CheckpointWriter, HashedFile
from simpo_cli.run.manifest import HashBeside, HashedReader
from tests.model.played_card import OnCard, played_card


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
        with closing(HashBeside()) as hashing:
            read_tensors([HashedReader(descriptor, hashing)], into)
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


def _many(seed: int) -> dict[str, Tensor]:
    """Every type, and sizes around one, two and three pieces of 64 bytes."""
    draw = torch.Generator().manual_seed(seed)
    sizes = (0, 1, 15, 16, 17, 32, 33, 48, 50)
    made = {
        f"{dtype}.{size}".removeprefix("torch."): torch.randn(size, generator=draw).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        for size in sizes
    }
    return {
        **made,
        **_tensors(seed),
        "step": torch.tensor(float(seed)),
        "strided": torch.randn(9, 8, generator=draw)[:, ::2],
    }


@pytest.mark.parametrize("late", [False, True], ids=["copied at once", "copied at the last moment"])
def test_a_card_gives_and_takes_the_bytes_that_a_cpu_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    tensors = _many(7)
    (tmp_path / "cpu").mkdir()
    expected = _write(tmp_path / "cpu", tensors).read_bytes()
    monkeypatch.setattr(tensor_file, "_PIECE", 64)
    with played_card(late=late) as card:
        file = _write(tmp_path, {name: tensor.as_subclass(OnCard) for name, tensor in tensors.items()})
        assert file.read_bytes() == expected
        contiguous = [tensor.nbytes for tensor in tensors.values() if tensor.is_contiguous()]
        assert card.copies == sum(-(-size // 64) for size in contiguous)
        into = _many(8)
        _read(file, {name: tensor.as_subclass(OnCard) for name, tensor in into.items()})
        assert card.copies == 2 * sum(-(-size // 64) for size in contiguous)
    assert all(torch.equal(into[name], tensors[name]) for name in tensors)


def test_a_device_without_page_locked_memory_gives_and_takes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "backend_of", lambda _: BACKENDS["mps"])
    monkeypatch.setattr(tensor_file, "_PIECE", 64)
    tensors = _many(7)
    (tmp_path / "cpu").mkdir()
    expected = _write(tmp_path / "cpu", tensors).read_bytes()
    with played_card(late=True) as card:
        file = _write(tmp_path, {name: tensor.as_subclass(OnCard) for name, tensor in tensors.items()})
        assert file.read_bytes() == expected
        into = _many(8)
        _read(file, {name: tensor.as_subclass(OnCard) for name, tensor in into.items()})
        assert card.copies == 0
    assert all(torch.equal(into[name], tensors[name]) for name in tensors)


def test_tensors_on_both_sides_go_into_one_file_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = _many(9)
    (tmp_path / "cpu").mkdir()
    expected = _write(tmp_path / "cpu", tensors).read_bytes()
    monkeypatch.setattr(tensor_file, "_PIECE", 64)
    with played_card(late=True):
        mixed = {
            name: tensor.as_subclass(OnCard) if i % 3 else tensor for i, (name, tensor) in enumerate(tensors.items())
        }
        assert _write(tmp_path, mixed).read_bytes() == expected


def test_the_next_piece_is_on_its_way_while_one_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "_PIECE", 64)
    begun = []
    with played_card(late=False) as card:
        write = HashedFile.write

        def writing(self: HashedFile, data: bytes | memoryview) -> None:
            begun.append(card.copies)
            write(self, data)

        monkeypatch.setattr(HashedFile, "write", writing)
        _write(tmp_path, {"a": torch.arange(80.0).as_subclass(OnCard)})
    assert begun == [0, 0, 2, 3, 4, 5, 5]  # length and header; then five pieces


def test_what_is_on_its_way_to_a_card_has_arrived_when_reading_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it could arrive amid what an older checkpoint holds, which is read next."""
    file = _write(tmp_path, {"a": torch.arange(80.0)})
    with open(file, "r+b") as cut:
        cut.truncate(file.stat().st_size - 10)
    monkeypatch.setattr(tensor_file, "_PIECE", 64)
    into = torch.zeros(80)
    with played_card(late=True) as card:
        with pytest.raises(EOFError):
            _read(file, {"a": into.as_subclass(OnCard)})
        assert card.copies == 4
    assert torch.equal(into[:64], torch.arange(64.0))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_of_a_real_card_are_saved_as_those_of_a_cpu_and_come_back(tmp_path: Path) -> None:
    sizes = {"step": (), "empty": (0, 3), "odd": (70_000_001,), "matrix": (4096, 5001)}  # the odd one is five pieces
    tensors = {name: torch.randn(size) for name, size in sizes.items()}
    (tmp_path / "cpu").mkdir()
    expected = _write(tmp_path / "cpu", tensors)
    file = _write(tmp_path, {name: tensor.cuda() for name, tensor in tensors.items()})
    assert filecmp.cmp(file, expected, shallow=False)
    into = {name: torch.zeros(size, device="cuda") for name, size in sizes.items()}
    _read(file, into)
    assert all(torch.equal(into[name].cpu(), tensors[name]) for name in tensors)
