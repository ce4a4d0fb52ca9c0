"""Models of real shapes with random weights, and pairs of the lengths that real ones have."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from simpo_cli.data.pair import EncodedPair
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.load import switch_off_dropout
from simpo_cli.model.policy import Policy
from simpo_cli.recipe.schema import LoraRecipe
from tests.model.shapes import LLAMA_8B, QWEN_1B5, SMOLLM2_135M

LORA = LoraRecipe(rank=16, alpha=32.0)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Median tokens of prompt, chosen and rejected response; single lengths spread around them by half."""

    prompt: int
    chosen: int
    rejected: int


SHORT = Lengths(150, 50, 60)  # of HH
LONG = Lengths(300, 250, 250)  # of UltraFeedback
TINY = Lengths(12, 6, 7)


def make_pairs(count: int, lengths: Lengths, vocab_size: int) -> list[EncodedPair]:
    """Pairs of random tokens, log-normal in their lengths, none longer than four times the median."""
    random = np.random.default_rng(0)

    def ids(median: int) -> Any:
        length = int(np.clip(median * np.exp(0.5 * random.standard_normal()), 2, 4 * median))
        return random.integers(0, vocab_size, length).astype(np.int32)

    return [
        EncodedPair(
            ids(lengths.prompt), ids(lengths.chosen), ids(lengths.rejected), prompt_key=str(i), where=f"made {i}"
        )
        for i in range(count)
    ]


def smollm2_135m() -> Any:
    return AutoConfig.for_model(**SMOLLM2_135M, max_position_embeddings=8192)


def qwen2_1_5b() -> Any:
    return AutoConfig.for_model(**QWEN_1B5, max_position_embeddings=8192)


def llama3_8b() -> Any:
    return AutoConfig.for_model(**LLAMA_8B, max_position_embeddings=8192)


def tiny() -> LlamaConfig:
    """What stands for all of them on a CPU."""
    return LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )


def build(config: Any, device: torch.device, *, weights: torch.dtype, lora: bool = False) -> Policy:
    """A policy of padded rows with random weights, made on the device itself."""
    torch.manual_seed(0)
    with device:
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=weights)
    switch_off_dropout(model)
    if lora:
        model = add_adapters(model, LORA)
    return Policy(model).to(device).train()


def without_fused_layers(policy: Policy) -> None:
    """Leave the model's own norms and feed-forwards in place while prompts are shared, where Liger is installed too."""
    policy._replaced = ()
