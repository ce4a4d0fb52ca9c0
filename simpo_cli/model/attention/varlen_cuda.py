"""Attention over packed pairs on a CUDA device: one call of a variable-length kernel for the whole pack.

As (queries, keys) of different lengths a pair is three sequences, each causal and aligned at its end:
(prompt, prompt), (chosen, prompt + chosen), (rejected, prompt + rejected). So keys and values are gathered with every
prompt up to three times; queries and outputs are the pack's own rows. The kernel is that of
`torch.nn.attention.varlen`, which ships with torch.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from simpo_cli.model.packed import PairSpan

_WIDEST_HEAD = 256
_FIRST_CAPABILITY = (8, 0)  # Ampere: what the kernels need


def fits_varlen(query: Tensor) -> bool:
    """Whether the kernel computes in this type, width and device."""
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] <= _WIDEST_HEAD
        and torch.cuda.get_device_capability(query.device) >= _FIRST_CAPABILITY
    )


def attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, spans: Sequence[PairSpan], scale: float, window: int | None
) -> Tensor:
    """Attention of every pair; see `interface.shared_prefix_attention`. Returns (1, T, H, D)."""
    from torch.nn.attention.varlen import varlen_attn

    gather, query_ends, key_ends, most_queries, most_keys = sequences(tuple(spans), query.device)
    attended = varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1).index_select(0, gather),
        value[0].transpose(0, 1).index_select(0, gather),
        query_ends,
        key_ends,
        most_queries,
        most_keys,
        scale=scale,
        # a token sees itself and what is at most so many places before it
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
        num_splits=1,  # the sum's order must not depend on the other pairs of the pack
    )
    assert isinstance(attended, Tensor)
    return attended.unsqueeze(0)


@lru_cache(maxsize=4)  # every layer of a micro-batch asks for the same
def sequences(spans: tuple[PairSpan, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """The three sequences of every pair for a variable-length kernel.

    Returns:
        (K,) int64 rows of the pack that are keys, sequence after sequence; (S + 1,) int32 ends of the sequences among
        the queries, and among the keys, each with a 0 in front; most queries and most keys of a sequence. Sequences
        without queries are left out.
    """
    rows: list[Tensor] = []
    query_lengths, key_lengths = [], []
    for span in spans:
        prompt = torch.arange(span.start, span.start + span.prompt)
        first = span.start + span.prompt
        rows.append(prompt)
        query_lengths.append(span.prompt)
        key_lengths.append(span.prompt)
        for length in (span.chosen, span.rejected):
            if length:
                rows += [prompt, torch.arange(first, first + length)]
                query_lengths.append(length)
                key_lengths.append(span.prompt + length)
            first += length

    def ends(lengths: list[int]) -> Tensor:
        return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)

    return (
        torch.cat(rows).to(device),
        ends(query_lengths),
        ends(key_lengths),
        max(query_lengths),
        max(key_lengths),
    )
