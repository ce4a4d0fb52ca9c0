"""Attention over packed pairs, one segment at a time, in plain torch: the path that computes everything.

A pair is three segments: the prompt looks at itself, each response looks at the prompt and at itself. Sliding windows,
soft caps and sinks are honoured here. Nothing is as large as the pack is long: the scores of a segment are its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from simpo_cli.model.packed import PairSpan


def attend_by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Sequence[PairSpan],
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of every segment; the arguments are those of `interface.shared_prefix_attention`.

    Returns:
        (1, T, H, V).
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    lengths = [length for span in spans for length in (span.prompt, span.chosen, span.rejected)]
    # split, not slices: its backward joins the pieces once instead of adding up one full-sized gradient a slice
    queries, keys, values = (torch.split(tensor, lengths, dim=2) for tensor in (query, key, value))
    outputs = []
    for first in range(0, len(lengths), 3):
        prompt_key, prompt_value = keys[first], values[first]
        for segment in (first, first + 1, first + 2):
            if lengths[segment] == 0:
                continue
            k, v = keys[segment], values[segment]
            if segment != first:
                k, v = torch.cat([prompt_key, k], dim=2), torch.cat([prompt_value, v], dim=2)
            visible = _visible(lengths[segment], k.shape[2], window, query.device)
            if softcap is None and sinks is None:
                outputs.append(scaled_dot_product_attention(queries[segment], k, v, attn_mask=visible, scale=scale))
            else:
                outputs.append(_attend(queries[segment], k, v, visible, scale, softcap, sinks))
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _visible(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """(num_queries, num_keys): which keys a query sees; both end at the same token."""
    at = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    keys = torch.arange(num_keys, device=device)[None, :]
    seen = keys <= at
    return seen if window is None else seen & (at - keys < window)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention with soft-capped scores (gemma2) and sinks (gpt-oss); the softmax in float32 or wider."""
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~visible, float("-inf"))
    if sinks is not None:
        column = sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.softmax(torch.cat([scores, column], dim=-1), dim=-1)[..., :-1]
    else:
        weights = torch.softmax(scores, dim=-1)
    return weights.to(value.dtype) @ value
