"""Attention over packed pairs on a CUDA device: one call of a variable-length kernel for the whole pack.

Keys and values are gathered with every prompt up to three times (see `packed.sequences_of`); queries and outputs are
the pack's own rows. The kernel is FlashAttention as it ships with torch, by the operators that
`torch.nn.attention.varlen` calls. It takes grouped heads as they are.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from simpo_cli.model.backend import backend_of
from simpo_cli.model.packed import sizes_of

_forward = torch.ops.aten._flash_attention_forward
_backward = torch.ops.aten._flash_attention_backward

_WIDEST_HEAD = 256
_WIDTHS = 8  # the kernel reads rows 16 bytes at a time
_FIRST_CAPABILITY = (8, 0)  # Ampere: what the kernels need


def fits_varlen(query: Tensor) -> bool:
    """Whether the kernel computes in this type, width and device."""
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] <= _WIDEST_HEAD
        and query.shape[-1] % _WIDTHS == 0
        and bool(_has_kernel(query.device))
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # a question to the driver, which no graph can hold
def _has_kernel(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= _FIRST_CAPABILITY


def attend(
    query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, sequences: Tensor, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """Output and normaliser; see `operator.packed_attention`."""
    call = _Call(lengths, sequences, scale, window)
    output, normaliser, *_ = _forward(
        _rows(query),
        call.gathered(key),
        call.gathered(value),
        *call.sequences,
        *call.fixed,
        False,  # no mask for debugging
        **call.options,
        **_NO_SPLITS,
    )
    return output.unsqueeze(0), normaliser.unsqueeze(0)


def gradients(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    normaliser: Tensor,
    lengths: Tensor,
    sequences: Tensor,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of queries, keys and values; see `operator.packed_attention_backward`."""
    call = _Call(lengths, sequences, scale, window)
    grad_query, grad_key, grad_value = _backward(
        gradient[0].contiguous(),
        _rows(query),
        call.gathered(key),
        call.gathered(value),
        output[0],
        normaliser[0],
        *call.sequences,
        *call.fixed,
        # the state of a generator that is not asked without dropout
        torch.zeros(2, dtype=torch.uint64, device=query.device),
        query.new_empty(0),
        **call.options,
    )
    return grad_query.unsqueeze(0).transpose(1, 2), call.summed(grad_key), call.summed(grad_value)


class _Call:
    """What both operators are called with beside the states."""

    def __init__(self, lengths: Tensor, sequences: Tensor, scale: float, window: int | None) -> None:
        sizes = sizes_of(tuple(lengths.tolist()))
        ends = sizes.sequences + 1
        self._keys, copies, query_ends, key_ends = torch.split(sequences, [sizes.keys, 3 * sizes.tokens, ends, ends])
        self._copies = copies.view(3, sizes.tokens)
        self.sequences = (query_ends, key_ends, sizes.most_queries, sizes.most_keys)
        is_windowed = window is not None and window < sizes.most_keys
        self.fixed = (0.0, not is_windowed)  # dropout, plain causal attention
        # a token sees itself and what is at most so many places before it
        left = window - 1 if window is not None and is_windowed else -1
        self.options = {"scale": scale, "window_size_left": left, "window_size_right": 0}

    def gathered(self, states: Tensor) -> Tensor:
        """(1, K, T, D) to the rows of all sequences."""
        return states[0].transpose(0, 1).index_select(0, self._keys)

    def summed(self, gradient: Tensor) -> Tensor:
        """The rows of all sequences to (1, K, T, D): always first copy, second, third, added up in float32 or wider."""
        padded = pad(gradient, (0, 0, 0, 0, 0, 1))  # a row of 0 for copies that are not there
        first, second, third = (padded.index_select(0, rows) for rows in self._copies)
        wide = torch.promote_types(gradient.dtype, torch.float32)
        return (first.to(wide) + second + third).to(gradient.dtype).unsqueeze(0).transpose(1, 2)


def _rows(states: Tensor) -> Tensor:
    """(1, H, T, D) to (T, H, D)."""
    return states[0].transpose(0, 1).contiguous()


def _splits() -> dict[str, Any]:
    """The sum's order must not depend on the other pairs of the pack: 2.11 never splits the keys, later ones may.

    The kernels of ROCm are not asked: the argument is NVIDIA's.
    """
    known = [argument.name for argument in _forward.default._schema.arguments]
    return {"num_splits": 1} if "num_splits" in known and backend_of(torch.device("cuda")).takes_splits else {}


_NO_SPLITS = _splits()
