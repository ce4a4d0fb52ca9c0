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

from simpo_cli.model.attention.by_segment import attend_by_segment
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


def kernel_difference(
    spans: Sequence[PairSpan], heads: int, key_heads: int, width: int, window: int | None, device: torch.device
) -> float:
    """How far the kernel is from the same attention by segment, on random bf16 numbers: output and gradients.

    The self-check compares whole models in float32, where the kernel does not compute; this is its part of the check.

    Returns:
        The highest relative difference, by norm. Rounding to bf16 makes some thousandths; a mask aligned at the wrong
        end, or a window that is lost, makes a number near 1.
    """
    generator = torch.Generator(device).manual_seed(0)
    states = [
        torch.randn(1, count, spans[-1].end, width, generator=generator, device=device, dtype=torch.bfloat16)
        for count in (heads, key_heads, key_heads)
    ]
    results = []
    for kernel in (True, False):
        query, key, value = ((t if kernel else t.float()).detach().requires_grad_() for t in states)
        scale = width**-0.5
        if kernel:
            output = attend_varlen(query, key, value, spans, scale, window)
        else:
            output = attend_by_segment(query, key, value, spans, scale, window, None, None)
        weights = torch.linspace(-1, 1, output.numel(), device=device).reshape(output.shape).to(output.dtype)
        results.append([output.detach(), *torch.autograd.grad((output * weights).sum(), (query, key, value))])
    return max(
        float((ours.float() - own).norm() / own.norm().clamp_min(1e-12)) for ours, own in zip(*results, strict=True)
    )


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
