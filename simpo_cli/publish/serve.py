"""The commands by which others serve a model that a run wrote."""

import re

from simpo_cli.model.remote_code import FLAG
from simpo_cli.model.source import ModelSource
from simpo_cli.recipe.schema import ModelRecipe

GGUF_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""The format's name of the architecture of each model_type that `simpo export --gguf` writes."""

_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # --max-lora-rank takes one of these


def can_be_gguf(source: ModelSource) -> bool:
    """Whether `simpo export --gguf` may write a model that began with this one."""
    return source.config.model_type in GGUF_ARCHITECTURES and not source.is_stored_quantised


def serve_commands(name: str, model: str, base: str, recipe: ModelRecipe, *, has_code: bool) -> list[tuple[str, str]]:
    """Each command, and what it does; none for adapters with DoRA, which vLLM does not take.

    Args:
        name: what requests call adapters.
        model: the model's folder.
        base: the model under adapters: a folder or an id on the hub.
    """
    code = f" {FLAG}" if has_code else ""
    if recipe.lora is None:
        return [
            (f"vllm serve {model}{code}", "OpenAI-compatible server (vLLM)"),
            (f"transformers serve {model}{code}", "the same (transformers[serving])"),
        ]
    if recipe.lora.use_dora:
        return []
    saved = recipe.lora.saved_rank
    rank = next((most for most in _VLLM_RANKS if most >= saved), saved)
    adapters = f"--enable-lora --lora-modules {name}={model} --max-lora-rank {rank}"
    whole = "" if recipe.quantization is None else ", on the whole base"
    return [(f"vllm serve {base} {adapters}{code}", f"OpenAI-compatible server (vLLM); its model is {name}{whole}")]


def served_name(name: str) -> str:
    """A run's name as servers take one: lower case without spaces."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._") or "model"
