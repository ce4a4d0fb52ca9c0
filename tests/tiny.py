"""Tiny models and tokenizers, made from nothing, for tests that need the real code paths and not the real knowledge."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from simpo_cli.model.load import apply_soft_cap

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
    tokenizer = _byte_level(special, _TEXT * 3, vocab_size)
    if add_bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{add_bos} $A", special_tokens=[(add_bos, tokenizer.token_to_id(add_bos))]
        )
    return tokenizer


def merging_tokenizer(special: tuple[str, ...]) -> Tokenizer:
    """A byte-level tokenizer that merges across words and lines, so that tokens straddle prompt and response."""
    text = ["assistant\nOpen Settings.", "assistant\nAsk.", "Q: a\nA: b"]
    return _byte_level(special, text * 20, 400, use_regex=False)


def _byte_level(special: tuple[str, ...], text: list[str], vocab_size: int, *, use_regex: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
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
    description = json.loads(tokenizer.to_str())  # the trainer makes special tokens of the bytes, which they are not
    description["added_tokens"] = [one for one in description["added_tokens"] if one["content"] not in bytes_]
    return Tokenizer.from_str(json.dumps(description))


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
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)).to(dtype).eval()
    apply_soft_cap(model)
    return model


def save_tiny_model(folder: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Path:
    """A model folder: random weights, configuration, ChatML tokenizer."""
    tiny_model(seed=seed, dtype=dtype, **changes).save_pretrained(folder)
    chatml_tokenizer(folder)
    return folder


# Tokenizers and templates of the families that people tune, small and close to the real ones


def legacy_sentencepiece_tokenizer(special: tuple[str, ...]) -> Tokenizer:
    """As `sentencepiece_like_tokenizer`, with the space put in front of every stretch of text, as Mistral 7B's has."""
    tokenizer = sentencepiece_like_tokenizer(special)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def spaceless_sentencepiece_tokenizer(special: tuple[str, ...]) -> Tokenizer:
    """A tokenizer that writes spaces as `▁` and puts none in front, as Gemma's does."""
    tokenizer = sentencepiece_like_tokenizer(special)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def unigram_tokenizer(special: tuple[str, ...]) -> Tokenizer:
    """A unigram tokenizer that normalizes its text (NFKC) and holds its special tokens in its vocabulary."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=["<unk>", *special],
        unk_token="<unk>",
        initial_alphabet=[chr(i) for i in range(33, 127)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT * 3, trainer)
    return tokenizer


@dataclass(frozen=True)
class Family:
    """A kind of chat model: tokenizer, special tokens, template and the end tokens of its generation config."""

    make: Callable[[], Tokenizer]
    template: str
    eos: str
    end: str  # what the template ends a turn with
    bos: str | None = None
    pad: str | None = None
    generation_ends: tuple[str, ...] = ()

    def save(self, folder: Path) -> Path:
        """Write the folder of a model of this kind, without weights."""
        tokenizer = self.make()
        save_tokenizer(folder, tokenizer, bos=self.bos, eos=self.eos, pad=self.pad, template=self.template)
        ends = [tokenizer.token_to_id(end) for end in self.generation_ends]
        if ends:
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        return folder


def _with_words(
    make: Callable[[tuple[str, ...]], Tokenizer], special: tuple[str, ...], words: tuple[str, ...] = ()
) -> Callable[[], Tokenizer]:
    def tokenizer() -> Tokenizer:
        made = make(special)
        made.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
        return made

    return tokenizer


def _llama3_tokenizer() -> Tokenizer:
    names = ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id", "eom_id")
    return byte_level_tokenizer(tuple(f"<|{name}|>" for name in names), add_bos="<|begin_of_text|>")


def _phi3_tokenizer() -> Tokenizer:
    tokenizer = sentencepiece_like_tokenizer(("<s>", "</s>", "<|endoftext|>"))
    names = ("system", "user", "assistant", "end")
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", rstrip=True, normalized=False) for name in names])
    return tokenizer


def _qwen_tokenizer(make: Callable[..., Tokenizer] = byte_level_tokenizer) -> Tokenizer:
    tokenizer = make(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tokenizer.normalizer = normalizers.NFC()
    words = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    return tokenizer


_DEEPSEEK_SPECIAL = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
_GEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
_GLM4_SPECIAL = ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_HARMONY_SPECIAL = ("<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>")
_LLAMA3_ENDS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")

_chatml_tokenizer = _with_words(byte_level_tokenizer, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
_chatml_merging = _with_words(merging_tokenizer, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
_chatml_loose = _with_words(byte_level_tokenizer, ("<s>", "</s>"), ("<|im_start|>", "<|im_end|>"))
_mistral_tokenizer = _with_words(sentencepiece_like_tokenizer, ("<s>", "</s>", "[INST]", "[/INST]"))
_legacy_tokenizer = _with_words(legacy_sentencepiece_tokenizer, ("<s>", "</s>"))
_gemma_tokenizer = _with_words(spaceless_sentencepiece_tokenizer, _GEMMA_SPECIAL, ("\n\n",))
_deepseek_tokenizer = _with_words(byte_level_tokenizer, _DEEPSEEK_SPECIAL, ("<think>", "</think>"))
_glm4_tokenizer = _with_words(byte_level_tokenizer, _GLM4_SPECIAL)
_harmony_tokenizer = _with_words(byte_level_tokenizer, _HARMONY_SPECIAL)
_vicuna_tokenizer = _with_words(unigram_tokenizer, ("<s>", "</s>"))

_CHATML_DEFAULT_SYSTEM = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CHATML_NO_GENERATION_PROMPT = CHATML.split("{% if add_generation_prompt")[0]
_LLAMA3 = (
    "{{- bos_token }}{%- if date is not defined %}{%- set date = strftime_now('%d %b %Y') %}{%- endif %}"
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date + '\n\n' + system + '<|eot_id|>' }}"
    "{%- for message in messages %}"
    "{%- set role = 'ipython' if message.role == 'tool' else message.role %}"
    "{{- '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}"
    "{{- (message.content | tojson if role == 'ipython' else message.content | trim) + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
_MISTRAL = (
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content + '\n\n' %}"
    "{%- set turns = messages[1:] %}{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}"
    "{{- bos_token }}{%- for message in turns %}"
    "{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif %}"
    "{%- if message.role == 'user' %}{{- '[INST] ' + (system if loop.first else '') + message.content + ' [/INST]' }}"
    "{%- elif message.role == 'assistant' %}{{- ' ' + message.content | trim + eos_token }}"
    "{%- else %}{{- raise_exception('Only user and assistant roles are supported!') }}{%- endif %}{%- endfor %}"
)
_GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}{{ '\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
_QWEN3 = (
    "{%- if tools %}{{- '<|im_start|>system\n# Tools\n' }}{%- for tool in tools %}{{- tool | tojson }}{{- '\n' }}"
    "{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}"
    "{%- set ns = namespace(last=-1) %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{%- if message.role == 'assistant' %}"
    "{%- set content = message.content %}{%- set thought = '' %}{%- if '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{%- else %}{{- '<|im_start|>assistant\n' + content }}{%- endif %}{{- '<|im_end|>\n' }}"
    "{%- elif message.role == 'tool' %}"
    "{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
_QWEN3_THINKING = (  # as the models of July 2025 that always think: the generation prompt opens the reasoning
    _QWEN3.split("{%- if add_generation_prompt")[0]
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"
)
_DEEPSEEK = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
_DEEPSEEK_R1 = _DEEPSEEK.replace("{{ '<｜Assistant｜>' }}{% endif %}", "{{ '<｜Assistant｜><think>\n' }}{% endif %}")
_PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_GLM4 = (
    "[gMASK]<sop>{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_HARMONY = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|channel|>final' }}{% endif %}{{ '<|message|>' + message['content'] }}"
    "{{ '<|return|>' if loop.last and message['role'] == 'assistant' else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
_VICUNA = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ASSISTANT: ' + message['content'] + eos_token }}"
    "{% else %}{{ message['content'] + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)

_IM_END, _BOS, _EOS = "<|im_end|>", _DEEPSEEK_SPECIAL[0], _DEEPSEEK_SPECIAL[1]
FAMILIES = {
    "chatml": Family(_chatml_tokenizer, CHATML, _IM_END, _IM_END, "<|im_start|>", "<|endoftext|>"),
    "chatml_system": Family(_chatml_tokenizer, _CHATML_DEFAULT_SYSTEM, _IM_END, _IM_END, "<|im_start|>", _IM_END),
    # as Qwen2's base models: the template's end is not the tokenizer's
    "chatml_base_eos": Family(_chatml_tokenizer, CHATML, "<|endoftext|>", _IM_END),
    "chatml_loose": Family(_chatml_loose, CHATML, "</s>", _IM_END, "<s>"),  # its markers are added, not special, tokens
    "chatml_merging": Family(_chatml_merging, CHATML, _IM_END, _IM_END),
    "chatml_no_generation_prompt": Family(_chatml_tokenizer, _CHATML_NO_GENERATION_PROMPT, _IM_END, _IM_END),
    "llama3": Family(
        _llama3_tokenizer, _LLAMA3, "<|eot_id|>", "<|eot_id|>", "<|begin_of_text|>", "<|eot_id|>", _LLAMA3_ENDS
    ),
    "mistral": Family(_mistral_tokenizer, _MISTRAL, "</s>", "</s>", "<s>"),
    "mistral_words": Family(_legacy_tokenizer, _MISTRAL, "</s>", "</s>", "<s>"),  # [INST] is text, as at first
    "gemma": Family(_gemma_tokenizer, _GEMMA, "<eos>", "<end_of_turn>", "<bos>", "<pad>"),
    "zephyr": Family(_legacy_tokenizer, _ZEPHYR, "</s>", "</s>", "<s>", "</s>"),
    "qwen3": Family(
        _qwen_tokenizer, _QWEN3, _IM_END, _IM_END, None, "<|endoftext|>", generation_ends=(_IM_END, "<|endoftext|>")
    ),
    "qwen3_thinking": Family(_qwen_tokenizer, _QWEN3_THINKING, _IM_END, _IM_END, None, "<|endoftext|>"),
    "deepseek": Family(_deepseek_tokenizer, _DEEPSEEK, _EOS, _EOS, _BOS),
    "deepseek_r1": Family(_deepseek_tokenizer, _DEEPSEEK_R1, _EOS, _EOS, _BOS),
    "phi3": Family(_phi3_tokenizer, _PHI3, "<|endoftext|>", "<|end|>", "<s>", "<|endoftext|>"),
    "glm4": Family(
        _glm4_tokenizer,
        _GLM4,
        "<|endoftext|>",
        "<|user|>",
        None,
        None,
        ("<|endoftext|>", "<|user|>", "<|observation|>"),
    ),
    "harmony": Family(
        _harmony_tokenizer, _HARMONY, "<|return|>", "<|return|>", generation_ends=("<|return|>", "<|call|>")
    ),
    "vicuna": Family(_vicuna_tokenizer, _VICUNA, "</s>", "</s>", "<s>"),
}


def change_config(folder: Path, **changes: Any) -> None:
    """Write other values into a folder's tokenizer_config.json."""
    change_json(folder / "tokenizer_config.json", **changes)


def change_json(file: Path, **changes: Any) -> None:
    """Write other values into a mapping."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
