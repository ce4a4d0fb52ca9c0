"""A tokenizer as a GGUF file holds it, for those of which llama.cpp makes the same tokens.

The format holds no pre-tokenizer, only a name for one that the engine has built in, and an engine that is given another
name cuts texts into other tokens without a word. So a name is given only to a tokenizer.json whose definition is, part
by part, the one that the name stands for. Two kinds are known:

- byte-level BPE: vocabulary and merges, with the split of GPT-2, Llama 3, Qwen2 or SmolLM.
- SentencePiece BPE as in Llama 2 and Mistral 7B, where a space stands in front of every stretch of text. The format
  holds a score for each piece in place of merges, and engines merge whatever gives the piece with the highest score;
  so the merges have to be all those that the pieces allow, in the order of the pieces that they give.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from simpo_cli.data.tokenizer import TextTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # the format's types of tokens

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _CONTRACTIONS + (r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": use_regex}


def _split(regex: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}


_DIGITS = {"type": "Digits", "individual_digits": True}
_PRE_TOKENIZERS: Mapping[str, dict[str, Any]] = {
    "gpt-2": _byte_level(use_regex=True),
    "llama-bpe": _split(_LLAMA3),
    "qwen2": _split(_QWEN2),
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _byte_level(use_regex=True)]},
}
_IGNORES_MERGES = {"llama-bpe"}  # a word that is in the vocabulary is one token, whatever the merges say
_BYTES = tuple(f"<0x{i:02X}>" for i in range(256))
_IN_FRONT_OF_ALL: dict[str, Any] = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}


class NotNamedError(ValueError):
    """The format has no name for this tokenizer; the message is the reason, without a subject."""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer, chat template aside.

    Attributes:
        model: `gpt2` for byte-level BPE, `llama` for SentencePiece.
        pre: the name of the pre-tokenizer.
        types: of each token.
        scores: of each token, the highest merged first; empty for `gpt2`.
        merges: pairs with a space between, the first merged first; empty for `llama`.
        ids: of tokens with a part, such as `bos`.
    """

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    merges: Sequence[str]
    ids: Mapping[str, int]
    add_bos: bool
    add_eos: bool

    @classmethod
    def of(cls, tokenizer: TextTokenizer, num_rows: int, bos_id: int | None) -> "Vocabulary":
        """That of a model's tokenizer.

        Args:
            num_rows: rows of the model's embedding; those without a token get a made-up one that no text gives.
            bos_id: the BOS token by the model's configuration, where the tokenizer names none.

        Raises:
            NotNamedError: llama.cpp would read texts in other tokens, or nobody can tell.
        """
        description = json.loads(tokenizer.description)
        model, added = description["model"], description["added_tokens"]
        if tokenizer.vocab_size > num_rows:
            raise NotNamedError(f"it has {tokenizer.vocab_size:,} tokens, and the model has {num_rows:,}")
        pre = _name_of(description)
        for token in added:
            if odd := next((key for key in ("lstrip", "rstrip", "single_word") if token[key]), None):
                raise NotNamedError(f"its token {token['content']} has {odd}, which the format does not know")
        tokens, types = [f"[PAD{i}]" for i in range(num_rows)], [UNUSED] * num_rows
        for text, i in model["vocab"].items():
            tokens[i], types[i] = text, NORMAL
        for token in added:
            tokens[token["id"]] = token["content"]
            types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
        merges = [tuple(one.split(" ", 1)) if isinstance(one, str) else tuple(one) for one in model["merges"]]
        scores: list[float] = []
        if pre == "default":
            types[model["vocab"][model["unk_token"]]] = UNKNOWN
            for text in _BYTES:
                types[model["vocab"][text]] = BYTE
            scores, merges = _scores_of(merges, tokens), []
        special = tokenizer.special_tokens
        named = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "eot": tokenizer.turn_marks().end_id}
        named["bos"] = bos_id if named["bos"] is None else named["bos"]
        named |= {part: tokenizer.id_of(special.get(f"{key}_token")) for part, key in _FURTHER.items()}
        ids = {part: i for part, i in named.items() if i is not None and i < num_rows}
        before, behind = tokenizer.plain_ends
        if before not in ([], [ids.get("bos")]) or behind not in ([], [ids.get("eos")]):
            raise NotNamedError("it puts more around a text than BOS and EOS")
        kind = "llama" if pre == "default" else "gpt2"
        pairs = [" ".join(pair) for pair in merges]
        return cls(kind, pre, tokens, types, scores, pairs, ids, bool(before), bool(behind))

    def write(self, writer: Any) -> None:
        """Add it to a GGUFWriter."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        for part, i in self.ids.items():
            writer.add_uint32(f"tokenizer.ggml.{part}_token_id", i)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        writer.add_add_space_prefix(self.model == "llama")

    @classmethod
    def read(cls, reader: Any) -> "Vocabulary":
        """What a GGUFReader finds."""
        fields = {name.removeprefix("tokenizer.ggml."): field for name, field in reader.fields.items()}
        known = {name: field.contents() for name, field in fields.items()}
        ids = {name.removesuffix("_token_id"): i for name, i in known.items() if name.endswith("_token_id")}
        return cls(
            known["model"],
            known["pre"],
            known["tokens"],
            known["token_type"],
            known.get("scores", []),
            known.get("merges", []),
            ids,
            known["add_bos_token"],
            known["add_eos_token"],
        )

    def tokenizer(self) -> Tokenizer:
        """A tokenizer that does what an engine does with this vocabulary."""
        is_byte_level = self.model == "gpt2"
        rows = list(zip(self.tokens, self.types, strict=True))
        merges = [one.split(" ", 1) for one in self.merges] if is_byte_level else _merges_of(self.tokens, self.scores)
        model = {
            "type": "BPE",
            "vocab": {text: i for i, (text, _) in enumerate(rows)},
            "merges": merges,
            "unk_token": next((text for text, kind in rows if kind == UNKNOWN), None),
            "byte_fallback": not is_byte_level,
            "ignore_merges": self.pre in _IGNORES_MERGES,
        }
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        description = {
            "added_tokens": [
                {"id": i, "content": text, "special": kind != USER_DEFINED, **plain}
                for i, (text, kind) in enumerate(rows)
                if kind in (CONTROL, USER_DEFINED, UNKNOWN)
            ],
            "normalizer": None if is_byte_level else _IN_FRONT_OF_ALL,
            "pre_tokenizer": _PRE_TOKENIZERS[self.pre] if is_byte_level else None,
            "model": model,
        }
        return Tokenizer.from_str(json.dumps({"version": "1.0", **description}))


_FURTHER = {"unknown": "unk", "padding": "pad"}  # the format's names of parts, and the tokenizer's


def _name_of(description: Mapping[str, Any]) -> str:
    """The name of a tokenizer's pre-tokenizer: `default` for SentencePiece."""
    model, splits, normalizer = description["model"], description["pre_tokenizer"], description["normalizer"]
    if model["type"] != "BPE" or any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix")):
        raise NotNamedError(f"it is no plain BPE tokenizer ({model['type']})")
    if model.get("byte_fallback"):
        if splits is not None or normalizer != _IN_FRONT_OF_ALL:
            raise NotNamedError(
                "llama.cpp puts a space in front of every stretch of text between special tokens, and it does not"
            )
        if any(token["normalized"] for token in description["added_tokens"]):
            raise NotNamedError("it looks for its special tokens behind the normalizer, and llama.cpp before")
        if model.get("ignore_merges") or not {model["unk_token"], *_BYTES} <= model["vocab"].keys():
            raise NotNamedError("it is not as SentencePiece makes them")
        return "default"
    plain = _offsets_aside(splits)
    name = next((name for name, known in _PRE_TOKENIZERS.items() if known == plain), None)
    if name is None:
        raise NotNamedError("the format names no pre-tokenizer of its definition")
    # llama.cpp normalizes no text. Qwen's tokenizers bring texts into NFC, which most texts are in
    if normalizer not in (None, {"type": "Sequence", "normalizers": []}, {"type": "NFC"}):
        raise NotNamedError(f"it normalizes texts ({normalizer['type']}), and llama.cpp does not")
    if bool(model.get("ignore_merges")) != (name in _IGNORES_MERGES):
        raise NotNamedError(f"ignore_merges is not what it is for the pre-tokenizer {name}")
    return name


def _offsets_aside(definition: Any) -> Any:
    """A pre-tokenizer with `trim_offsets`, which decides no token, as it is in those that we know."""
    if isinstance(definition, dict):
        return {key: key != "trim_offsets" and _offsets_aside(value) for key, value in definition.items()}
    return [_offsets_aside(one) for one in definition] if isinstance(definition, list) else definition


def _scores_of(merges: Sequence[tuple[str, ...]], tokens: Sequence[str]) -> list[float]:
    """A score for each token: the first piece that the merges give has the highest."""
    order = {text: -float(rank) for rank, text in enumerate(dict.fromkeys(a + b for a, b in merges))}
    scores = [order.get(text, -float(len(order))) for text in tokens]
    found = [order[a + b] for a, b in merges]
    if found != sorted(found, reverse=True) or {tuple(pair) for pair in _merges_of(tokens, scores)} != set(merges):
        raise NotNamedError("its merges are not all that its pieces allow, in an order of the pieces")
    return scores


def _merges_of(tokens: Sequence[str], scores: Sequence[float]) -> list[list[str]]:
    """Every pair of tokens that gives a token, the highest score first."""
    known = set(tokens)
    pieces = sorted(zip(scores, tokens, strict=True), key=lambda piece: -piece[0])
    cuts = ([text[:at], text[at:]] for _, text in pieces for at in range(1, len(text)))
    return [cut for cut in cuts if known.issuperset(cut)]
