"""Attention over packed pairs on a CPU, from torch's fused kernel.

The kernel knows square causal attention and full attention, and returns with its output the logarithm of the sum of the
exponentials that the softmax divided by. That is enough to put a response's attention together from two calls, one over
its prompt (chosen and rejected at once, no mask) and one over itself (causal):

    z = log(exp(z_prompt) + exp(z_self))        out = exp(z_prompt - z) * out_prompt + exp(z_self - z) * out_self

and the kernel's backward pass, given `out` and `z` of the whole, returns the exact gradient of either part. So no mask
and no copy of a prompt is ever made, and no score is computed twice. (The same identity carries FlashAttention, Dao et
al. 2022, arXiv:2205.14135, and ring attention, Liu et al. 2023, arXiv:2310.01889, from block to block.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from simpo_cli.model.packed import PairSpan

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend(query: Tensor, key: Tensor, value: Tensor, spans: Sequence[PairSpan], scale: float) -> tuple[Tensor, Tensor]:
    """Output and normaliser; see `operator.packed_attention`."""
    _, heads, length, width = query.shape
    output = query.new_empty(1, length, heads, width).transpose(1, 2)
    normaliser = query.new_empty(1, heads, length, dtype=torch.promote_types(query.dtype, torch.float32))
    for span in spans:
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


def gradients(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    normaliser: Tensor,
    spans: Sequence[PairSpan],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of queries, keys and values; see `operator.packed_attention_backward`."""
    gradient, output = gradient.transpose(1, 2), output.transpose(1, 2)
    grad_query, grad_key, grad_value = (empty_rows_first(tensor) for tensor in (query, key, value))

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

    for span in spans:
        prompt, responses, each = _slices(span)
        for part in (prompt, *each):
            grad_query[:, :, part], grad_key[:, :, part], grad_value[:, :, part] = part_of(part, part, True)
        if each:
            of_query, of_key, of_value = part_of(responses, prompt, False)
            grad_query[:, :, responses] += of_query
            grad_key[:, :, prompt] += of_key
            grad_value[:, :, prompt] += of_value
    return grad_query, grad_key, grad_value


def empty_rows_first(like: Tensor) -> Tensor:
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
