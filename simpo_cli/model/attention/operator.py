"""Attention over packed pairs as one operator of torch, which no compiler looks into.

Which pairs lie where is in tensors, and every number that follows from them is read inside the operator. So a compiled
layer is one graph whatever is packed, and running eagerly the same kernels compute the same bits.

On a CPU it is calls of torch's fused kernel, which knows square causal attention and full attention, and returns with
its output the logarithm of the sum of the exponentials that the softmax divided by. That is enough to put a response's
attention together from two calls, one over its prompt (chosen and rejected at once, no mask) and one over itself
(causal):

    z = log(exp(z_prompt) + exp(z_self))        out = exp(z_prompt - z) * out_prompt + exp(z_self - z) * out_self

and the kernel's backward pass, given `out` and `z` of the whole, returns the exact gradient of either part. So no mask
and no copy of a prompt is ever made, and no score is computed twice. (The same identity carries FlashAttention, Dao et
al. 2022, arXiv:2205.14135, and ring attention, Liu et al. 2023, arXiv:2310.01889, from block to block.)

On a CUDA device it is one call of a variable-length kernel, see `varlen_cuda`.
"""

from typing import Any

import torch
from torch import Tensor

from simpo_cli.model.attention import varlen_cuda
from simpo_cli.model.packed import PackLayout, PairSpan

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


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
        window: a token sees this many tokens up to itself, or all when None; on a CPU it must be None.

    Returns:
        (1, T, H, D), and for the backward pass (1, H, T): the logarithm of what the softmax divided by, float32 or
        wider.
    """
    assert window is None
    _, heads, length, width = query.shape
    output = query.new_empty(1, length, heads, width).transpose(1, 2)
    normaliser = query.new_empty(1, heads, length, dtype=torch.promote_types(query.dtype, torch.float32))
    for span in PackLayout(lengths, sequences).spans:
        prompt, responses, each = _slices(span)
        for part in (prompt, *each):
            output[:, :, part], normaliser[:, :, part] = _forward(
                query[:, :, part], key[:, :, part], value[:, :, part], 0.0, True, scale=scale
            )
        if each:
            _merge(
                output[:, :, responses],
                normaliser[:, :, responses],
                *_forward(query[:, :, responses], key[:, :, prompt], value[:, :, prompt], 0.0, False, scale=scale),
            )
    return output.transpose(1, 2), normaliser


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
    gradient, output = gradient.transpose(1, 2), output.transpose(1, 2)
    grad_query, grad_key, grad_value = (_empty_rows_first(tensor) for tensor in (query, key, value))

    def part_of(queries: slice, keys: slice, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
        parts: tuple[Tensor, Tensor, Tensor] = _backward(
            gradient[:, :, queries],
            query[:, :, queries],
            key[:, :, keys],
            value[:, :, keys],
            output[:, :, queries],
            normaliser[:, :, queries],
            0.0,
            causal,
            scale=scale,
        )
        return parts

    for span in PackLayout(lengths, sequences).spans:
        prompt, responses, each = _slices(span)
        for part in (prompt, *each):
            grad_query[:, :, part], grad_key[:, :, part], grad_value[:, :, part] = part_of(part, part, True)
        if each:
            of_query, of_key, of_value = part_of(responses, prompt, False)
            grad_query[:, :, responses] += of_query
            grad_key[:, :, prompt] += of_key
            grad_value[:, :, prompt] += of_value
    return grad_query, grad_key, grad_value


@packed_attention_backward.register_fake
def _gradients_on_shapes(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any) -> tuple[Tensor, ...]:
    return tuple(_empty_rows_first(states) for states in (query, key, value))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, lengths, sequences, output, normaliser = ctx.saved_tensors
    found = packed_attention_backward(
        gradient, query, key, value, output, normaliser, lengths, sequences, ctx.scale, ctx.window
    )
    return (*found, None, None, None, None)


packed_attention.register_kernel("cuda")(varlen_cuda.attend)
packed_attention_backward.register_kernel("cuda")(varlen_cuda.gradients)
packed_attention.register_autograd(_gradients, setup_context=_keep)


def _empty_rows_first(like: Tensor) -> Tensor:
    """(1, H, T, D) in memory as (1, T, H, D), which is how the projections around attention have their rows."""
    _, heads, length, width = like.shape
    return like.new_empty(1, length, heads, width).transpose(1, 2)


def _slices(span: PairSpan) -> tuple[slice, slice, list[slice]]:
    """The prompt, both responses together, and each response that has tokens in the pack."""
    chosen = span.start + span.prompt
    rejected = chosen + span.chosen
    each = [slice(first, last) for first, last in ((chosen, rejected), (rejected, span.end)) if last > first]
    return slice(span.start, chosen), slice(chosen, span.end), each


def _merge(output: Tensor, normaliser: Tensor, other: Tensor, other_normaliser: Tensor) -> None:
    """Join the attention over another set of keys into `output` and `normaliser`, in place."""
    joint = torch.logaddexp(normaliser, other_normaliser)
    ours, theirs = (normaliser - joint).exp_().unsqueeze(-1), (other_normaliser - joint).exp_().unsqueeze(-1)
    output.copy_(output * ours + other * theirs)  # in float32 where the output is narrower
    normaliser.copy_(joint)
