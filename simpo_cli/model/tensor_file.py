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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from io import BufferedReader
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from simpo_cli.distributed.sharded import is_sharded, local, rows_of
from simpo_cli.model.backend import backend_of
from simpo_cli.run.checkpoint import HashedFile
from simpo_cli.run.manifest import HashedReader

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPES |= {"U8": torch.uint8, "I8": torch.int8, "I32": torch.int32}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MOST_HEADER_BYTES = 100_000_000  # the library's own limit
_PIECE = 2**26  # bytes; small enough that a signal does not wait for the hash of one


class TensorMismatchError(Exception):
    """A file holds other tensors than those that were asked for; the message names one and says how it differs."""


def plain_parts(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The tensors that a file holds of one, in its memory: itself, or what a subclass keeps its numbers in."""
    if is_sharded(tensor) or not is_traceable_wrapper_subclass(tensor):
        return {name: tensor}
    attributes, _ = tensor.__tensor_flatten__()
    return {f"{name}.{attribute}": getattr(tensor, attribute) for attribute in attributes}


def write_tensors(file: HashedFile, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors."""
    widest_first = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that all are aligned
    in_order = {name: tensors[name] for name in widest_first}
    write_as_they_come(file, in_order, in_order.values())


def write_as_they_come(file: HashedFile, described: Mapping[str, Tensor], tensors: Iterable[Tensor]) -> None:
    """Write tensors each of which need not be there before its turn, nor after it.

    Args:
        described: by name, in the order of the file, a tensor of the type and shape of each; wider types come first.
        tensors: the tensors in this order; the bytes of one on a CPU are written before the next is asked for.
    """
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in described.items():
        end = offset + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)))
    file.write(text)
    detached = (tensor.detach() for tensor in tensors)
    contiguous = (tensor if tensor.is_contiguous() else tensor.cpu().contiguous() for tensor in detached)
    for piece in _on_host(piece for tensor in contiguous for piece in _pieces(tensor)):
        file.write(_memory(piece))


def read_tensors(files: Sequence[HashedReader], into: Mapping[str, Tensor]) -> None:
    """Read files into tensors that are there.

    On a CPU the numbers go straight to where they are used. After an exception the tensors hold anything.

    Args:
        into: the tensors by name, on a CPU or a CUDA device; the files together must hold exactly these.

    Raises:
        TensorMismatchError: they hold others.
    """
    headers = [_header(file) for file in files]
    _require_fit(headers, into)
    with _filling() as fill:
        for file, header in zip(files, headers, strict=True):
            for name in _by_place(header):
                fill(into[name], file.readinto)


def read_shards(files: Sequence[Path], into: Mapping[str, Tensor]) -> None:
    """Read what this rank holds of each tensor, as `read_tensors` does, from files that somebody has verified."""
    with ExitStack() as stack:
        streams = [stack.enter_context(file.open("rb")) for file in files]
        headers = [_header(stream) for stream in streams]
        _require_fit(headers, into)
        fill = stack.enter_context(_filling())
        for stream, header in zip(streams, headers, strict=True):
            start = stream.tell()
            for name in _by_place(header):
                shard, [first, end] = local(into[name]), header[name]["data_offsets"]
                if is_sharded(into[name]) and end > first:
                    first += rows_of(into[name]).start * (end - first) // into[name].shape[0]
                stream.seek(start + first)
                fill(shard, partial(_read_all, stream))


def _read_all(stream: BufferedReader, piece: memoryview) -> None:
    if stream.readinto(piece) != len(piece):
        raise EOFError


def _header(file: HashedReader | BufferedReader) -> dict[str, Any]:
    """What a file says of its tensors, by name."""
    [length] = struct.unpack("<Q", file.read(8))
    if length > _MOST_HEADER_BYTES:
        raise TensorMismatchError("it is no file of tensors")
    header: dict[str, Any] = json.loads(file.read(length))
    return header


def _require_fit(headers: Sequence[Mapping[str, Any]], into: Mapping[str, Tensor]) -> None:
    """Refuse files that together do not hold tensors of these names, types and shapes."""
    entries = {name: entry for header in headers for name, entry in header.items()}
    for name in sorted(entries.keys() ^ into.keys()):
        raise TensorMismatchError(f"{name} is only in the {'checkpoint' if name in entries else 'model'}")
    for name, entry in entries.items():
        stored, wanted = (_DTYPES[entry["dtype"]], tuple(entry["shape"])), (into[name].dtype, tuple(into[name].shape))
        if stored != wanted:
            there, here = (f"{str(dtype).removeprefix('torch.')} {shape}" for dtype, shape in (stored, wanted))
            raise TensorMismatchError(f"{name} is {there} in the checkpoint and {here} in the model")


def _by_place(header: Mapping[str, Any]) -> list[str]:
    """The names in the order of the file."""
    return sorted(header, key=lambda name: header[name]["data_offsets"])


@contextmanager
def _filling() -> Iterator[Callable[[Tensor, Callable[[memoryview], None]], None]]:
    """A function that fills a tensor by a function that fills memory; they are full when the block ends."""
    buffers: _PinnedBuffers | None = None

    def fill(tensor: Tensor, read: Callable[[memoryview], None]) -> None:
        nonlocal buffers
        target = tensor.detach()
        contiguous = target if target.is_contiguous() else torch.empty(target.shape, dtype=target.dtype)
        for piece in _pieces(contiguous):
            if piece.device.type == "cpu":
                read(_memory(piece))
            elif not backend_of(piece.device).pinned:
                host = torch.empty(piece.shape, dtype=piece.dtype)
                read(_memory(host))
                piece.copy_(host)
            else:
                buffers = buffers or _PinnedBuffers(piece.device)
                buffers.fill(piece, read)
        if contiguous is not target:
            target.copy_(contiguous)

    try:
        yield fill
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
    """The pieces in memory of the host, each of them good until the next is asked for; a copy from a card has begun."""
    buffers: _PinnedBuffers | None = None
    coming: tuple[Tensor, torch.cuda.Event] | None = None
    for piece in pieces:
        before, coming = coming, None
        is_pinned = backend_of(piece.device).pinned
        if is_pinned:
            buffers = buffers or _PinnedBuffers(piece.device)
            coming = buffers.fetch(piece)
        if before is not None:
            yield _arrived(*before)
        if not is_pinned:
            yield piece.cpu()
    if coming is not None:
        yield _arrived(*coming)


def _arrived(piece: Tensor, copied: torch.cuda.Event) -> Tensor:
    copied.synchronize()
    return piece


def _pieces(tensor: Tensor) -> list[Tensor]:
    """The bytes of a contiguous tensor, in its own memory; none of an empty one."""
    all_bytes = tensor.reshape(-1).view(torch.uint8)
    return [all_bytes[start : start + _PIECE] for start in range(0, len(all_bytes), _PIECE)]


def _memory(piece: Tensor) -> memoryview:
    return piece.numpy().data
