"""Tiny models and tokenizers, made from nothing, for tests that need the real code paths and not the real knowledge."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_TEXT = [
    "How do I invite a teammate to my project?",
    "Open Settings, choose People, press Invite, enter the address.",
    "the quick brown fox jumps over the lazy dog again and again, 0123456789",
    "user assistant system tool\n\nHuman: hello\n\nAssistant: hello there",
]


def byte_level_tokenizer(special: tuple[str, ...], *, vocab_size: int = 400, add_bos: str | None = None) -> Tokenizer:
    """A byte-level BPE tokenizer with the special tokens at its first ids; `add_bos` is put in front of plain text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT * 3, trainer)
    if add_bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{add_bos} $A", special_tokens=[(add_bos, tokenizer.token_to_id(add_bos))]
        )
    return tokenizer


def sentencepiece_like_tokenizer(special: tuple[str, ...]) -> Tokenizer:
    """A BPE tokenizer that puts a visible space in front of a text and falls back to bytes, as Llama 2's does."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", *special, *bytes_], show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator(_TEXT * 3, trainer)
    return tokenizer


def save_tokenizer(
    folder: Path, tokenizer: Tokenizer, *, bos: str | None, eos: str | None, pad: str | None, template: str | None
) -> PreTrainedTokenizerFast:
    """Write the tokenizer's files as transformers does, and return it as transformers has it."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)
    fast.chat_template = template
    fast.save_pretrained(folder)
    return fast


def chatml_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A ChatML tokenizer in a folder: BOS `<|im_start|>`, EOS `<|im_end|>`, as SmolLM2 has them."""
    tokenizer = byte_level_tokenizer(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    return save_tokenizer(folder, tokenizer, bos="<|im_start|>", eos="<|im_end|>", pad="<|endoftext|>", template=CHATML)


def tiny_config(model_type: str = "llama", **changes: Any) -> Any:
    """A configuration small enough to run in milliseconds."""
    from transformers import AutoConfig

    sizes: dict[str, Any] = {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    return AutoConfig.for_model(model_type, **{**sizes, **changes})


def tiny_model(model_type: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random model; float64 where a test wants exactness."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)).to(dtype).eval()


def save_tiny_model(folder: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Path:
    """A model folder: random weights, configuration, ChatML tokenizer."""
    tiny_model(seed=seed, dtype=dtype, **changes).save_pretrained(folder)
    chatml_tokenizer(folder)
    return folder
