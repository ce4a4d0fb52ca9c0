"""A run's model as one GGUF file, for llama.cpp and what is built on it, and the proof that it is the same model.

A file can be wrong without a word: with the rotary halves of queries and keys not interleaved as llama.cpp wants them a
model answers fluently and was 12.8 nats off. So the file is read again by the GGUF reader of transformers, which shares
no code with what writes here, and is kept only if every weight has the bits that it should have and every response
token of real pairs its log-probability. What cannot be proved that way, such as another pre-tokenizer, is refused.
"""

import errno
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.prepare import prepare_data
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.errors import UserError
from simpo_cli.files import disk_faults, sync
from simpo_cli.model.load import load_model
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy
from simpo_cli.model.source import ModelSource, find_model
from simpo_cli.publish.export import written_whole
from simpo_cli.publish.gguf_vocabulary import NotNamedError, Vocabulary
from simpo_cli.publish.merge import MOST_LOST, MergedInMemory, compared_pairs, differs, merge_in_memory
from simpo_cli.publish.serve import GGUF_ARCHITECTURES
from simpo_cli.recipe.composition import compose
from simpo_cli.stages import stage

Kind = Literal["bf16", "q8_0"]

_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
)
_ROPE_FACTORS = "rope_freqs.weight"
_MOST_DIFFERENCE = 1e-3  # nats, of any response token's log-probability
_AWKWARD = (
    "It's 1234567 o'clock; they'LL've 3.14159 €, 5² and ½.",
    "  two  spaces\ttab\r\n\n\n   and\n lines \n",
    "naïve Ünïcödé — 你好，世界 🙂👩‍👩‍👧 مرحبا नमस्ते",
    "def f(x):\n    return {'a': [x**2, ~x]}  # ok?!...\n",
)


@dataclass(frozen=True, slots=True)
class Written:
    """A GGUF file that was kept.

    Attributes:
        num_tokens: response tokens whose log-probabilities were compared.
        difference: the largest of these between the file and the same model with its weights rounded alike, in nats.
        rounding: the largest and the mean that rounding itself cost against model/, in nats.
        pre: the file's name for the pre-tokenizer.
        num_texts: texts whose tokens were compared.
        merge: what became of the adapters, if there were any: by how much training changed the logits and by how much
            the file's type did, root mean squares in nats.
    """

    num_bytes: int
    num_tokens: int
    difference: float
    rounding: tuple[float, float]
    pre: str
    num_texts: int
    add_bos: bool  # whether engines put BOS in front of a text
    tokenizer: TextTokenizer
    template_kwargs: Mapping[str, Any]
    merge: tuple[float, float] | None
    trained_beside: str | None  # how the base was quantised in training, which is whole here


def require_writable(source: ModelSource, converter: str) -> None:
    """Refuse a model that would be written wrong, or that reading back could not prove right.

    Args:
        converter: the command of llama.cpp that may do it instead.

    Raises:
        UserError: names what it is.
    """
    config = source.config
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    architecture = GGUF_ARCHITECTURES.get(config.model_type)
    why = ""
    if architecture is None or source.code:
        why = f"its model_type is {config.model_type}, and {', '.join(GGUF_ARCHITECTURES)} are known"
    elif kind not in ("default", "llama3") or (kind == "llama3" and architecture != "llama"):
        why = f"its positions are scaled (rope_type {kind})"
    elif rope.get("partial_rotary_factor", 1.0) != 1.0:
        why = "a part of each head has no rotary positions"
    elif config.hidden_act != "silu":
        why = f"its activation is {config.hidden_act}, where the format means silu"
    else:
        biased = [key for key in ("attention_bias", "mlp_bias") if getattr(config, key, False)]
        why = f"it has biases ({biased[0]})" if biased else ""
    if why:
        raise _refused(source.name, why, converter)


def export_gguf(run: Path, file: Path, kind: Kind) -> Written:
    """Write a run's model, adapters merged, as one file, whole or not at all.

    Args:
        file: what to write; nothing may be there.
        kind: type of the matrices; vectors are float32.

    Raises:
        UserError: the format or we cannot hold this model, what was written reads back as another, or the disk does not
            take it (exit code 4).
    """
    source = find_model(str(run / "model"))
    is_adapter = source.adapter is not None
    merge = f"simpo export {run} --merge && " if is_adapter else ""
    converter = f"{merge}python convert_hf_to_gguf.py {run / ('merged' if is_adapter else 'model')} --outtype {kind}"
    require_writable(source, converter)
    recipe = compose(str(run / "recipe.yaml")).recipe
    data = prepare_data(recipe)
    tokenizer, config = data.tokenizer, source.config
    try:
        vocabulary = Vocabulary.of(tokenizer, config.vocab_size, config.bos_token_id)
    except NotNamedError as error:
        raise _refused(f"the tokenizer of {source.name}", str(error), converter) from error
    # behind its context the engine attends to all tokens, where a sliding window would forget the first
    pairs = [pair for pair in compared_pairs(data) if pair.num_tokens <= _context(config)]
    if not pairs:
        why = f"every compared pair is longer than the {_context(config):,} tokens within which it can be compared"
        raise _refused(source.name, why, converter)

    merged = merge_in_memory(source, pairs) if is_adapter else None
    model: Any = load_model(source, torch.float32) if merged is None else merged.model
    exact = _logps(model, pairs)
    with disk_faults(f"{file} cannot be written"), written_whole(file, keep=False) as temporary:
        written = temporary / file.name
        with stage(f"writing {file.name}"):
            _write(written, model, vocabulary, kind, recipe.name, tokenizer.template_source)
        _round(model, kind)
        lost = _require_kept(merged, model, kind)
        rounded, digests = _logps(model, pairs), _digests(model)
        if merged is not None:
            merged.model = None
        del model
        with stage("reading the file again"):
            read, read_vocabulary = _read(written)
        _require_same_settings(config, read.config)
        difference = float((_logps(read, pairs) - rounded).abs().max())
        if not difference <= _MOST_DIFFERENCE:
            raise _differs(f"the log-probability of a response token differs by {difference:.2g} nats")
        found = _digests(read)
        if wrong := [name for name, digest in digests.items() if found.get(name) != digest]:
            raise _differs(f"{len(wrong)} of its weights differ, such as {wrong[0]}")
        texts = [
            *_AWKWARD,
            *(tokenizer.decode([*pair.prompt, *ids]) for pair in pairs for ids in (pair.chosen, pair.rejected)),
        ]
        ours = read_vocabulary.tokenizer()
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            if ours.encode(text, add_special_tokens=False).ids != ids:
                raise _differs(f"a text has other tokens: {text[:40]!r}")
        sync(written)
        written.rename(file)
        sync(file.parent)
    cost = (rounded - exact).abs()
    rounding = (float(cost.max()), float(cost.mean()))
    changes = None if merged is None else (merged.change, lost)
    return Written(
        num_bytes=file.stat().st_size,
        num_tokens=len(exact),
        difference=difference,
        rounding=rounding,
        pre=vocabulary.pre,
        num_texts=len(texts),
        add_bos=vocabulary.add_bos,
        tokenizer=tokenizer,
        template_kwargs=recipe.data.chat_template_kwargs or {},
        merge=changes,
        trained_beside=recipe.model.quantization,
    )


# Writing


def _context(config: Any) -> int:
    """Positions within which the model is what the format can say of it: none of ours has a sliding window there."""
    known = int(config.max_position_embeddings)
    return min(known, int(getattr(config, "sliding_window", None) or known))


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _write(file: Path, model: Any, vocabulary: Vocabulary, kind: Kind, name: str, template: str) -> None:
    """Write all of the file, a tensor at a time."""
    import gguf

    config = model.config
    architecture = GGUF_ARCHITECTURES[config.model_type]
    writer: Any = gguf.GGUFWriter(file, architecture)
    writer.add_type("model")
    writer.add_name(f"{name} by simpo")  # the bare name `mistral` means something to the reader of transformers
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if kind == "bf16" else gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(_context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    writer.add_rope_dimension_count(_head_dim(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    vocabulary.write(writer)
    if template:
        writer.add_chat_template(template)
    tensors = list(_tensors(model))
    for tensor in tensors:
        stored = _stored_as(tensor.numbers, kind)
        shape = gguf.quant_shape_to_byte_shape(tensor.numbers.shape, stored)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), math.prod(shape), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        numbers = tensor.numbers.detach() if tensor.heads is None else _interleaved(tensor.numbers, tensor.heads)
        stored = gguf.quantize(numbers.contiguous().numpy(), _stored_as(numbers, kind))
        try:
            writer.write_tensor_data(stored)
        except OSError as error:
            if error.errno is None:  # numpy writes them, and says how much of it the disk took, and not why no more
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
    writer.close()


class _Tensor(NamedTuple):
    name: str  # as the format has it, such as `blk.0.attn_q.weight`
    numbers: Tensor
    heads: int | None = None  # of queries or keys whose rotary halves are interleaved


def _tensors(model: Any) -> Iterator[_Tensor]:
    """What the file holds, in the model's order; nothing is copied."""
    import gguf

    config = model.config
    architecture = gguf.MODEL_ARCH[GGUF_ARCHITECTURES[config.model_type].upper()]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    is_llama = architecture == gguf.MODEL_ARCH.LLAMA
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads} if is_llama else {}
    for name, numbers in model.named_parameters():  # a head that is the embedding comes once
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, f"the format has no place for {name}"
        yield _Tensor(found, numbers, next((count for part, count in heads.items() if part in name), None))
    if config.rope_parameters["rope_type"] == "llama3":
        inverse = model.model.rotary_emb.inv_freq
        yield _Tensor(_ROPE_FACTORS, _plain_frequencies(config) / inverse)


def _plain_frequencies(config: Any) -> Tensor:
    """(head_dim / 2,) rotary frequencies without any scaling, in radians per position."""
    dim, base = _head_dim(config), float(config.rope_parameters["rope_theta"])
    return torch.pow(base, -(torch.arange(0, dim, 2, dtype=torch.float32) / dim))


def _interleaved(numbers: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys with the two rotary halves of each head taken in turns, as llama.cpp rotates neighbours.

    Shape: (heads * head_dim, hidden_size), for example (9 * 64, 576).
    """
    rows, columns = numbers.shape
    return numbers.detach().view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def _stored_as(numbers: Tensor, kind: Kind) -> Any:
    """The format's type of a tensor: vectors are float32, and q8_0 needs rows of whole blocks of 32."""
    from gguf import GGMLQuantizationType

    if numbers.ndim == 1:
        return GGMLQuantizationType.F32
    return GGMLQuantizationType.Q8_0 if kind == "q8_0" and numbers.shape[1] % 32 == 0 else GGMLQuantizationType.BF16


# Reading back


def _read(file: Path) -> tuple[Any, Vocabulary]:
    """The model and the vocabulary of a file, with what the reader of transformers leaves out of it."""
    import gguf
    from transformers import AutoConfig, AutoModelForCausalLM

    reader: Any = gguf.GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    found = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    found.head_dim = reader.fields[f"{architecture}.attention.key_length"].contents()
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, config=found, dtype=torch.float32, local_files_only=True
    )
    for tensor in reader.tensors:
        if tensor.name == _ROPE_FACTORS:  # an engine divides the angles by them
            loaded.model.rotary_emb.inv_freq /= torch.from_numpy(np.array(tensor.data))
    return loaded, Vocabulary.read(reader)


def _require_same_settings(config: Any, read: Any) -> None:
    """Refuse a file whose settings are others; log-probabilities hardly show some of them, such as a small epsilon."""
    wanted = {name: getattr(config, name) for name in _SETTINGS} | {
        "head_dim": _head_dim(config),
        "max_position_embeddings": _context(config),
        "rope_theta": config.rope_parameters["rope_theta"],
    }
    for name, value in wanted.items():
        found = read.rope_parameters["rope_theta"] if name == "rope_theta" else getattr(read, name)
        if not math.isclose(value, found, rel_tol=1e-6):
            raise _differs(f"{name} is {found} instead of {value}")


def _round(model: nn.Module, kind: Kind) -> None:
    """Give the weights the values that they have in the file."""
    import gguf

    with torch.no_grad():
        for numbers in model.parameters():
            stored = _stored_as(numbers, kind)
            if stored == gguf.GGMLQuantizationType.BF16:
                numbers.copy_(numbers.bfloat16())
            elif stored == gguf.GGMLQuantizationType.Q8_0:
                numbers.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(numbers.numpy(), stored), stored)))


def _require_kept(merged: MergedInMemory | None, model: nn.Module, kind: Kind) -> float:
    """What the type costs the logits of merged adapters; refused (UserError) as in a merge where it asks for bf16."""
    lost = 0.0 if merged is None else merged.lost(model)
    if merged is not None and kind == "bf16" and lost > max(MOST_LOST * merged.change, _MOST_DIFFERENCE):
        raise differs(
            f"in bf16 its logits are {lost:.2g} nats from the adapters', which changed them by {merged.change:.2g} "
            "(root mean squares)",
            "Keep more digits: --merge --dtype fp32, and llama.cpp's converter with --outtype f32.",
        )
    return lost


def _logps(model: nn.Module, pairs: Sequence[EncodedPair]) -> Tensor:
    """(N,) log-probabilities of all response tokens of the pairs, in nats."""
    policy, found = Policy(model).eval(), []
    with torch.no_grad(), stage("scoring pairs", len(pairs)) as work:
        for pair in pairs:
            found.append(policy(pack([pair], torch.device("cpu"))))
            work.advance()
    return torch.cat(found)


def _digests(model: nn.Module) -> dict[str, str]:
    """A digest of the bits of each weight."""
    return {
        name: xxhash.xxh3_128_hexdigest(numbers.detach().contiguous().numpy().tobytes())
        for name, numbers in model.named_parameters()
    }


def _differs(how: str) -> UserError:
    return UserError(
        f"the GGUF file does not read back as the model that was written: {how}. Nothing was kept.",
        "The fault is ours, or that of the installed gguf or transformers: please report it.",
    )


def _refused(what: str, why: str, converter: str) -> UserError:
    return UserError(
        f"{what} cannot be written as GGUF here: {why}.", f"llama.cpp's converter may know it: {converter}"
    )
