"""Which models cannot share prompts, known from their configuration.

What passes here is tried, and the self-check decides. What does not is known to come out wrong without raising
anything, or only for some lengths, or carries a state from token to token that a pack would carry from pair to pair.
"""

from typing import Any

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_STRETCHED_ROPE = ("longrope", "dynamic")


def why_not_shared(model_class: Any, config: Any, longest: int) -> str | None:
    """Why pairs of this model are computed as padded rows, or None when prompts may be shared.

    Args:
        model_class: the class that computes the model.
        config: the model's configuration.
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
