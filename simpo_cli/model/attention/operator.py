"""Attention over packed pairs as one operator of torch, which no compiler looks into.

Which pairs lie where is in tensors, and every number that follows from them is read inside the operator. So a compiled
layer is one graph whatever is packed, and running eagerly the same kernels compute the same bits.
"""

from typing import Any

import torch
from torch import Tensor

from simpo_cli.model.attention import fused_cpu, varlen_cuda
from simpo_cli.model.packed import PackLayout


@torch.library.custom_op("simpo::packed_attention", mutates_args=(), device_types="cpu")
def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, sequences: Tensor, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """Attention of every pair.

    Args:
        query: (1, H, T, D).
        key: (1, K, T, D), where K divides H.
        value: (1, K, T, D).
        lengths, sequences: of `PackLayout`.
        scale: multiplies the scores.
        window: a token sees this many tokens up to itself, or all when None; on a CPU it must be None.

    Returns:
        (1, T, H, D), and for the backward pass (1, H, T): the logarithm of what the softmax divided by, float32 or
        wider.
    """
    assert window is None
    return fused_cpu.attend(query, key, value, PackLayout(lengths, sequences).spans, scale)


@packed_attention.register_kernel("cuda")
def _attend_on_cuda(
    query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, sequences: Tensor, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    return varlen_cuda.attend(query, key, value, PackLayout(lengths, sequences), scale, window)


@packed_attention.register_fake
def _attend_on_shapes(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    heads, length, width = query.shape[1:]
    wide = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(1, length, heads, width), query.new_empty(1, heads, length, dtype=wide)


@torch.library.custom_op("simpo::packed_attention_backward", mutates_args=(), device_types="cpu")
def packed_attention_backward(
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
    """The gradients of query, key and value, each in memory as (1, T, heads, D).

    Args:
        gradient: (1, T, H, D), of the output.
        query, key, value, lengths, sequences, scale, window: as they were given to `packed_attention`.
        output, normaliser: what it returned.
    """
    assert window is None
    spans = PackLayout(lengths, sequences).spans
    return fused_cpu.gradients(gradient, query, key, value, output, normaliser, spans, scale)


@packed_attention_backward.register_kernel("cuda")
def _gradients_on_cuda(
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
    layout = PackLayout(lengths, sequences)
    return varlen_cuda.gradients(gradient, query, key, value, output, normaliser, layout, scale, window)


@packed_attention_backward.register_fake
def _gradients_on_shapes(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any) -> tuple[Tensor, ...]:
    return tuple(fused_cpu.empty_rows_first(states) for states in (query, key, value))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, lengths, sequences, output, normaliser = ctx.saved_tensors
    found = packed_attention_backward(
        gradient, query, key, value, output, normaliser, lengths, sequences, ctx.scale, ctx.window
    )
    return (*found, None, None, None, None)


packed_attention.register_autograd(_gradients, setup_context=_keep)
