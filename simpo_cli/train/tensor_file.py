"""Tensors to and from safetensors files, one at a time, through streams that are hashed on the way.

The library's own functions write and read files by themselves. Here the bytes have to pass through our hands, so that
they are hashed once and every failure of the disk is seen as one; and no second copy of the training state is made,
which is three times the size of the model. The format is 8 bytes with the length of a header in JSON, the header, and
the numbers (https://github.com/huggingface/safetensors, "Format").
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from simpo_cli.train.checkpoint import HashedFile, HashedReader

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MOST_HEADER_BYTES = 100_000_000  # the library's own limit


class TensorMismatchError(Exception):
    """A file holds other tensors than those that were asked for; the message names one and says how it differs."""


def write_tensors(file: HashedFile, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors from any device.

    Args:
        file: a new file.
        tensors: by name.
    """
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
    for name in widest_first:
        file.write(_bytes_of(tensors[name].detach().cpu().contiguous()))


def read_tensors(file: HashedReader, into: Mapping[str, Tensor]) -> None:
    """Read a file into tensors that are there, on any device.

    On a CPU the numbers go straight to where they are used. After an exception the tensors hold anything.

    Args:
        file: what `write_tensors` wrote.
        into: the tensors by name; the file must hold exactly these.

    Raises:
        TensorMismatchError: it holds others.
    """
    [length] = struct.unpack("<Q", file.read(8))
    if length > _MOST_HEADER_BYTES:
        raise TensorMismatchError("it is no file of tensors")
    header = json.loads(file.read(length))
    for name in sorted(header.keys() ^ into.keys()):
        raise TensorMismatchError(f"{name} is only in the {'checkpoint' if name in header else 'model'}")
    for name in sorted(header, key=lambda name: header[name]["data_offsets"]):
        target, entry = into[name].detach(), header[name]
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        if dtype != target.dtype or shape != tuple(target.shape):
            there, here = (f"{str(d).removeprefix('torch.')} {s}" for d, s in ((dtype, shape), _kind(target)))
            raise TensorMismatchError(f"{name} is {there} in the checkpoint and {here} in the model")
        direct = target.device.type == "cpu" and target.is_contiguous()
        buffer = target if direct else torch.empty(shape, dtype=dtype)
        file.readinto(_bytes_of(buffer))
        if not direct:
            target.copy_(buffer)


def _kind(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return tensor.dtype, tuple(tensor.shape)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
