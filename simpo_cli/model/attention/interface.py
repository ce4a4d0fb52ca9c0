"""Attention over packed pairs, for every model of transformers that follows its attention interface.

Each response attends to its prompt and to itself, at the positions that it would have alone; so a pack of pairs gives
the numbers of single sequences, with every prompt computed once. transformers hands each layer's queries, keys and
values to the function registered here, and passes on the layout that the policy gave to the model's forward.

What a layer asks for goes through an allow-list: a model that needs something unknown to this function raises here
instead of being computed wrongly, and the run goes on padded. Models that come out wrong without raising anything, or
only for some lengths, or that carry a state from token to token, which a pack would carry from pair to pair, are known
to `why_not_shared`. What passes is tried, and the self-check decides.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from simpo_cli.model.attention.by_segment import attend_by_segment
from simpo_cli.model.attention.flex import attend_flex, fits_flex
from simpo_cli.model.attention.operator import packed_attention
from simpo_cli.model.attention.varlen_cuda import fits_varlen
from simpo_cli.model.packed import PackLayout, PairSpan, layout_of, sizes_of

NAME = "simpo_shared_prefix"
NAME_WITHOUT_FLEX = "simpo_shared_prefix_without_flex"
SPANS = "simpo_spans"  # the keyword argument of the model's forward that carries the pairs' layout to the layers

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_STRETCHED_ROPE = ("longrope", "dynamic")
# Arguments that change nothing here: bookkeeping of caches and outputs, and positions that are in q and k already.
_WITHOUT_EFFECT = {
    "position_ids",
    "position_embeddings",
    "cache_position",
    "cache",
    "past_key_values",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "is_causal",  # checked by itself: only None and True come this far
}


class UnsupportedAttentionError(Exception):
    """A layer asks for attention that cannot be computed over packed pairs."""


def share_prompts(causal: Any, *, flex: bool) -> None:
    """Let the model's layers call `shared_prefix_attention` from now on, with FlexAttention or without.

    Raises:
        UnsupportedAttentionError: the model has attention of its own that does not go through the interface.
    """
    if not causal._can_set_attn_implementation():
        raise UnsupportedAttentionError("the model's attention does not go through the interface of transformers")
    causal.set_attn_implementation(NAME if flex else NAME_WITHOUT_FLEX)


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    flex: bool = True,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over a pack of pairs, in the form that transformers calls.

    Args:
        module: the attention layer.
        query: (1, H, T, D).
        key: (1, K, T, D), where K divides H.
        value: (1, K, T, V).
        attention_mask: must be None: the spans say who sees whom.
        scaling: multiplies the scores; None for D ** -0.5.
        dropout: must be 0.
        sliding_window: a token sees this many tokens up to itself, or all when None.
        softcap: scores become cap * tanh(score / cap).
        s_aux: (H,) sinks: a score of each head that takes part in the softmax and has no value.
        flex: whether FlexAttention may compute soft caps where it can; otherwise they go segment by segment.
        others: `simpo_spans`, and arguments without effect.

    Returns:
        (1, T, H, V), and None in place of the attention weights.

    Raises:
        UnsupportedAttentionError: an argument is not understood, or the spans are missing.
    """
    layout: PackLayout | None = others.pop(SPANS, None)
    if layout is None:
        raise UnsupportedAttentionError("the model did not pass the spans of the pairs on to its layers")
    if attention_mask is not None:
        raise UnsupportedAttentionError("the model made an attention mask of its own")
    if dropout:
        raise UnsupportedAttentionError("the layer has dropout")
    unknown = sorted(name for name, given in others.items() if given is not None and name not in _WITHOUT_EFFECT)
    if unknown:
        raise UnsupportedAttentionError(f"the layer passes {', '.join(unknown)}, which packed attention does not know")
    if others.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedAttentionError("the layer looks at later tokens")
    query, key, value = _one_dtype(query, key, value)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    plain = softcap is None and s_aux is None and key.shape[-1] == value.shape[-1]
    if plain and fits_varlen(query):
        return packed_attention(query, key, value, *layout, scale, sliding_window)[0], None
    if plain and query.device.type == "cpu" and _sees_all(layout, sliding_window):
        return packed_attention(query, key, value, *layout, scale, None)[0], None
    if torch.compiler.is_compiling():
        raise UnsupportedAttentionError("this layer's attention reads where the pairs lie, outside of an operator")
    if flex and softcap is not None and s_aux is None and fits_flex(query, key, value):
        return attend_flex(query, key, value, layout.spans, scale, sliding_window, softcap), None
    return attend_by_segment(query, key, value, layout.spans, scale, sliding_window, softcap, s_aux), None


def _sees_all(layout: PackLayout, window: int | None) -> bool:
    """Whether a window is wider than the longest pair. A compiler sees no lengths, and takes it for narrower."""
    if window is None or torch.compiler.is_compiling():
        return window is None
    return window >= sizes_of(tuple(layout.lengths.tolist())).most_keys


def _one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotary embeddings leave q and k in float32 under autocast, while v is in the compute type."""
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)


# Without a mask function of this name transformers makes no mask, and asks the device nothing on the way.
AttentionInterface.register(NAME, shared_prefix_attention)
AttentionInterface.register(NAME_WITHOUT_FLEX, partial(shared_prefix_attention, flex=False))


# What is known of a model's attention from its configuration


class Heads(NamedTuple):
    """Heads of queries, heads of keys and values, and the width of a head."""

    queries: int
    keys: int
    width: int


def heads_of(config: Any) -> Heads:
    """The heads of a model from its text configuration; those of a model that names none are one."""
    queries = int(getattr(config, "num_attention_heads", None) or 1)  # a model's own code may have no attention
    return Heads(
        queries,
        int(getattr(config, "num_key_value_heads", None) or queries),
        int(getattr(config, "head_dim", None) or config.hidden_size // queries),
    )


def why_not_shared(model_class: Any, config: Any, longest: int) -> str | None:
    """Why pairs of this model are computed as padded rows, or None when prompts may be shared.

    Args:
        longest: tokens of the longest prompt with one response.
    """
    text = config.get_text_config()
    model_type = str(text.model_type)
    if not model_class._supports_attention_backend:
        # attention of its own (bloom, falcon), a state (mamba and hybrids), or layers that drop arguments (stablelm)
        return f"{model_type} does not compute its attention through the interface of transformers"
    if model_type == "llama4_text":
        return f"{model_type} attends in chunks of what it is given, and scales by positions in it"
    if other := sorted(set(getattr(text, "layer_types", None) or ()) - _KNOWN_LAYERS):
        return f"{model_type} has layers of type {', '.join(other)}"
    for rope in _rope_parameters(text):
        kind = rope.get("rope_type", rope.get("type"))
        known = (
            rope.get("original_max_position_embeddings")
            or getattr(text, "original_max_position_embeddings", None)
            or getattr(text, "max_position_embeddings", None)
        )
        if kind in _STRETCHED_ROPE and known is not None and longest > int(known):
            return f"beyond {known} tokens the {kind} rotary embedding of {model_type} follows the longest pair"
    return None


def _rope_parameters(text_config: Any) -> list[dict[str, Any]]:
    """The rotary settings of a configuration: one for all layers, or one for each type of layer."""
    rope = getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None) or {}
    if not isinstance(rope, dict):
        return []
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return nested or [rope]


# The kernels of a card, which compute in bf16 and fp16 alone


def has_kernel(query: Tensor, key: Tensor, value: Tensor, softcap: float | None) -> bool:
    """Whether a card's kernel computes attention of such states, rather than plain torch segment by segment."""
    return fits_varlen(query) if softcap is None else fits_flex(query, key, value)


def kernel_difference(
    spans: Sequence[PairSpan], heads: Heads, window: int | None, softcap: float | None, device: torch.device
) -> float:
    """How far a card's kernel is from the same attention by segment, on random bf16 numbers: output and gradients.

    The self-check compares whole models in float32, where no kernel computes; this is its part of the check. Beside the
    pairs given, the shortest there can be are looked at.

    Returns:
        The highest relative difference, by norm. Rounding to bf16 makes some thousandths; a mask aligned at the wrong
        end, or a window or a cap that is lost, makes a number near 1.
    """
    spans = [*spans]
    for prompt, chosen, rejected in ((1, 0, 0), (1, 1, 1), (2, 0, 1), (1, 3, 0)):
        spans.append(PairSpan(spans[-1].end, prompt, chosen, rejected))
    generator = torch.Generator(device).manual_seed(0)
    drawn = [
        torch.randn(1, count, spans[-1].end, heads.width, generator=generator, device=device, dtype=torch.bfloat16)
        for count in (heads.queries, heads.keys, heads.keys)
    ]
    # scores so wide that a lost cap is seen, and not so wide that one key takes all the weight
    scale = max(1.0, (softcap or 0.0) / 5) * heads.width**-0.5
    compared = []
    for dtype in (torch.bfloat16, torch.float32):
        query, key, value = (states.to(dtype).requires_grad_() for states in drawn)
        if dtype == torch.bfloat16:
            given: dict[str, Any] = {SPANS: layout_of(spans, device), "sliding_window": window, "softcap": softcap}
            output, _ = shared_prefix_attention(nn.Module(), query, key, value, None, scaling=scale, **given)
        else:
            output = attend_by_segment(query, key, value, spans, scale, window, softcap, None)
        weights = torch.linspace(-1, 1, output.numel(), device=device).view(output.shape)
        gradients = torch.autograd.grad((output * weights).sum(), (query, key, value))
        compared.append([output.detach().float(), *(gradient.float() for gradient in gradients)])
    return max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(*compared, strict=True))
