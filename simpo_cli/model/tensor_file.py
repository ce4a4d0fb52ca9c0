"""Tensors to and from safetensors files, one at a time, through streams that are hashed on the way.

The library's own functions write and read files by themselves. Here the bytes have to pass through our hands, so that
they are hashed once and every failure of the disk is seen as one; and no second copy of the training state is made,
which is three times the size of the model. The format is 8 bytes with the length of a header in JSON, the header, and
the numbers (https://github.com/huggingface/safetensors, "Format").

Tensors go in pieces. On a CPU a piece is the tensor's own memory. From and to a CUDA device it passes through one of
two page-locked buffers, on a stream of their own, so that one piece is copied while another is hashed and written.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from simpo_cli.run.checkpoint import HashedFile
from simpo_cli.run.manifest import HashedReader

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MOST_HEADER_BYTES = 100_000_000  # the library's own limit
_PIECE = 2**26  # bytes; small enough that a signal does not wait for the hash of one


class TensorMismatchError(Exception):
    """A file holds other tensors than those that were asked for; the message names one and says how it differs."""


def write_tensors(file: HashedFile, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors."""
    widest_first = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that all are aligned
    header: dict[str, Any] = {}
    offset = 0
    for name in widest_first:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)))
    file.write(text)
    in_order = (tensors[name].detach() for name in widest_first)
    contiguous = (tensor if tensor.is_contiguous() else tensor.cpu().contiguous() for tensor in in_order)
    for piece in _on_host(piece for tensor in contiguous for piece in _pieces(tensor)):
        file.write(_memory(piece))


def read_tensors(file: HashedReader, into: Mapping[str, Tensor]) -> None:
    """Read a file into tensors that are there.

    On a CPU the numbers go straight to where they are used. After an exception the tensors hold anything.

    Args:
        into: the tensors by name, on a CPU or a CUDA device; the file must hold exactly these.

    Raises:
        TensorMismatchError: it holds others.
    """
    [length] = struct.unpack("<Q", file.read(8))
    if length > _MOST_HEADER_BYTES:
        raise TensorMismatchError("it is no file of tensors")
    header = json.loads(file.read(length))
    for name in sorted(header.keys() ^ into.keys()):
        raise TensorMismatchError(f"{name} is only in the {'checkpoint' if name in header else 'model'}")
    buffers: _PinnedBuffers | None = None
    try:
        for name in sorted(header, key=lambda name: header[name]["data_offsets"]):
            target, entry = into[name].detach(), header[name]
            stored, wanted = (_DTYPES[entry["dtype"]], tuple(entry["shape"])), (target.dtype, tuple(target.shape))
            if stored != wanted:
                there, here = (f"{str(dtype).removeprefix('torch.')} {shape}" for dtype, shape in (stored, wanted))
                raise TensorMismatchError(f"{name} is {there} in the checkpoint and {here} in the model")
            contiguous = target if target.is_contiguous() else torch.empty(target.shape, dtype=target.dtype)
            for piece in _pieces(contiguous):
                if piece.device.type == "cpu":
                    file.readinto(_memory(piece))
                else:
                    buffers = buffers or _PinnedBuffers(piece.device)
                    buffers.fill(piece, file.readinto)
            if contiguous is not target:
                target.copy_(contiguous)
    finally:
        if buffers is not None:
            buffers.wait()


class _PinnedBuffers:
    """Two page-locked buffers on the host, used by turns, and a stream that copies between them and a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))  # on which the tensors are still being computed
        pinned = [torch.empty(_PIECE, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._turns = cycle([(buffer, torch.cuda.Event()) for buffer in pinned])  # type: ignore[no-untyped-call]

    def fetch(self, piece: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """Begin to copy a piece from the card; it is there after the event, and goes with the next fetch but one."""
        buffer, copied = next(self._turns)
        arriving = buffer[: piece.numel()]
        self._copy(arriving, piece, copied)
        return arriving, copied

    def fill(self, piece: Tensor, read: Callable[[memoryview], None]) -> None:
        """Have a piece read, once its buffer's last one is on the card, and begin to copy it to its place there."""
        buffer, copied = next(self._turns)
        leaving = buffer[: piece.numel()]
        copied.synchronize()
        read(_memory(leaving))
        self._copy(piece, leaving, copied)

    def wait(self) -> None:
        """Wait for the end of all copies."""
        self._stream.synchronize()

    def _copy(self, to: Tensor, source: Tensor, copied: torch.cuda.Event) -> None:
        with torch.cuda.stream(self._stream):
            to.copy_(source, non_blocking=True)
        copied.record(self._stream)


def _on_host(pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """The pieces in memory of the host, each of them good until the next is asked for, whose copy has then begun."""
    buffers: _PinnedBuffers | None = None
    begun: list[tuple[Tensor, torch.cuda.Event | None]] = []
    for piece in pieces:
        if piece.device.type == "cpu":
            begun.append((piece, None))
        else:
            buffers = buffers or _PinnedBuffers(piece.device)
            begun.append(buffers.fetch(piece))
        if len(begun) == 2:
            yield _arrived(*begun.pop(0))
    for last in begun:
        yield _arrived(*last)


def _arrived(piece: Tensor, copied: torch.cuda.Event | None) -> Tensor:
    if copied is not None:
        copied.synchronize()
    return piece


def _pieces(tensor: Tensor) -> list[Tensor]:
    """The bytes of a contiguous tensor, in its own memory; none of an empty one."""
    all_bytes = tensor.reshape(-1).view(torch.uint8)
    return [all_bytes[start : start + _PIECE] for start in range(0, len(all_bytes), _PIECE)]


def _memory(piece: Tensor) -> memoryview:
    return piece.numpy().data
