"""Tokenizers in GGUF: a name only for the definition that it stands for, and the same tokens behind it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from simpo_cli.data.tokenizer import TextTokenizer, load_tokenizer
from simpo_cli.publish import gguf_vocabulary
from simpo_cli.publish.gguf_vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, NotNamedError
from simpo_cli.publish.gguf_vocabulary import Vocabulary as Found
from tests.tiny import FAMILIES, change_json, chatml_tokenizer, save_tokenizer, sentencepiece_like_tokenizer

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# as they stand in the tokenizer.json of these models
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _REST
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _REST


def _bytes(use_regex: bool, trim_offsets: bool = True) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": trim_offsets, "use_regex": use_regex}


def _split(regex: str, trim_offsets: bool) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _bytes(False, trim_offsets)]}


_DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _bytes(True)]}
_DEFINITIONS = {
    "gpt-2": _bytes(True),
    "llama-bpe": _split(_LLAMA3, True),
    "qwen2": _split(_QWEN2, False),
    "smollm": _DIGITS,
}
_TEXTS = (
    "It's 1234567 o'clock, they'LL've ½ x² 3.14",
    "  two  spaces\ttab\r\n\n\n and\n lines\n",
    "naïve 你好 🙂 मस्ते",
    "<|im_start|>user\nhello there<|im_end|>\n",
    "the quick brown fox</s> jumps<s>over  again",
)


def _byte_level(folder: Path, **changes: Any) -> TextTokenizer:
    """A ChatML tokenizer with other parts in its tokenizer.json; those of `model` by themselves."""
    chatml_tokenizer(folder)
    file = folder / "tokenizer.json"
    model = json.loads(file.read_text())["model"] | changes.pop("model", {})
    change_json(file, model=model, **changes)
    return load_tokenizer(str(folder))


def _named(folder: Path, name: str) -> TextTokenizer:
    ignores = {"ignore_merges": name == "llama-bpe"}
    return _byte_level(folder, pre_tokenizer=_DEFINITIONS[name], model=ignores)


@pytest.mark.parametrize("name", _DEFINITIONS)
def test_a_known_definition_gets_its_name_and_the_same_tokens(name: str, tmp_path: Path) -> None:
    tokenizer = _named(tmp_path, name)
    found = Found.of(tokenizer, 410, None)
    assert (found.model, found.pre, found.scores) == ("gpt2", name, [])
    assert (len(found.tokens), found.types[409], found.types[1]) == (410, UNUSED, CONTROL)
    assert found.ids == {"bos": 1, "eos": 2, "eot": 2, "padding": 0}
    assert not found.add_bos
    read = found.tokenizer()
    assert [read.encode(text).ids for text in _TEXTS] == tokenizer.encode_batch(_TEXTS)


def test_a_known_word_that_no_merges_give_is_one_token_for_llama_3_alone(tmp_path: Path) -> None:
    chatml_tokenizer(tmp_path)
    vocab = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"] | {"zqxj": 405}
    for name, count in (("llama-bpe", 1), ("qwen2", 4)):
        whole = {"ignore_merges": name == "llama-bpe", "vocab": vocab}
        tokenizer = _byte_level(tmp_path, pre_tokenizer=_DEFINITIONS[name], model=whole)
        ids = Found.of(tokenizer, 410, None).tokenizer().encode("zqxj").ids
        assert (len(ids), [ids]) == (count, tokenizer.encode_batch(["zqxj"]))


def test_the_texts_tell_the_definitions_apart(tmp_path: Path) -> None:
    cut = set()
    for name in _DEFINITIONS:
        splitter = Tokenizer.from_str(_named(tmp_path / name, name).description).pre_tokenizer
        assert splitter is not None
        cut.add(str([splitter.pre_tokenize_str(text) for text in _TEXTS]))
    assert len(cut) == len(_DEFINITIONS)


def test_the_reader_of_transformers_splits_alike() -> None:
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    for name, regex in (("llama-bpe", gguf_vocabulary._LLAMA3), ("qwen2", gguf_vocabulary._QWEN2)):
        assert mapping.GGUF_PRE_TOKENIZER_SPLITS[name] == regex


def _added(**changes: Any) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"added_tokens": [{"id": 2, "content": "<|im_end|>", **plain, **changes}]}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"pre_tokenizer": _split(_LLAMA3.replace("{1,3}", "{1,2}"), True)},
            "names no pre-tokenizer of its definition",
        ),
        ({"pre_tokenizer": None}, "names no pre-tokenizer of its definition"),
        (
            {"pre_tokenizer": _DEFINITIONS["llama-bpe"]},
            "ignore_merges is not what it is for the pre-tokenizer llama-bpe",
        ),
        ({"normalizer": {"type": "Lowercase"}}, r"it normalizes texts \(Lowercase\)"),
        (_added(lstrip=True), r"its token <\|im_end\|> has lstrip"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "it is no plain BPE tokenizer"),
    ],
)
def test_another_definition_gets_no_name(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(NotNamedError, match=why):
        Found.of(_byte_level(tmp_path, **changes), 410, None)


def test_more_tokens_than_rows_are_refused(tmp_path: Path) -> None:
    tokenizer = _byte_level(tmp_path)
    with pytest.raises(NotNamedError, match=f"it has {tokenizer.vocab_size} tokens, and the model has 300"):
        Found.of(tokenizer, 300, None)


def test_what_the_tokenizer_puts_around_a_text_is_what_engines_are_told(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(FAMILIES["llama3"].save(tmp_path)))
    found = Found.of(tokenizer, 410, None)
    assert (found.add_bos, found.add_eos, found.ids["bos"]) == (True, False, 0)
    assert found.ids["eos"] == found.ids["eot"] == 4
    words = Found.of(load_tokenizer(str(FAMILIES["qwen3"].save(tmp_path / "qwen3"))), 410, 7)
    assert words.types[words.tokens.index("<think>")] == USER_DEFINED
    assert words.ids["bos"] == 7  # by the configuration: the tokenizer names none


def _sentencepiece(folder: Path, change: Callable[[dict[str, Any]], None]) -> TextTokenizer:
    """Zephyr's, with all the merges that its pieces allow, as the converters of SentencePiece list them."""
    FAMILIES["zephyr"].save(folder)
    file = folder / "tokenizer.json"
    description = json.loads(file.read_text())
    model = description["model"]
    pieces = list(dict.fromkeys("".join(pair) for pair in model["merges"]))
    cuts = [(piece[:at], piece[at:]) for piece in pieces for at in range(1, len(piece))]
    model["merges"] = [pair for pair in cuts if model["vocab"].keys() >= set(pair)]
    change(description)
    file.write_text(json.dumps(description))
    return load_tokenizer(str(folder))


def _tear_apart(model: dict[str, Any]) -> None:
    """Give a piece a second pair, which is merged last."""
    piece = "".join(model["merges"][-2])
    model["vocab"].setdefault(piece[1:], len(model["vocab"]))
    model["merges"] += [pair for pair in ([piece[0], piece[1:]],) if pair not in model["merges"]]


def test_sentencepiece_gets_scores_that_stand_for_its_merges(tmp_path: Path) -> None:
    tokenizer = _sentencepiece(tmp_path, lambda _: None)
    found = Found.of(tokenizer, 720, None)
    assert (found.model, found.pre, found.merges) == ("llama", "default", [])
    kinds = [found.types[found.tokens.index(text)] for text in ("<unk>", "</s>", "<0x0A>", "e")]
    assert kinds == [UNKNOWN, CONTROL, BYTE, NORMAL]
    read = found.tokenizer()
    assert [read.encode(text).ids for text in _TEXTS] == tokenizer.encode_batch(_TEXTS)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda found: found["model"]["merges"].pop(20), "its merges are not all that its pieces allow"),
        (lambda found: _tear_apart(found["model"]), "its merges are not all that its pieces allow"),
        (lambda found: found["added_tokens"][0].update(normalized=True), "special tokens behind the normalizer"),
        (lambda found: found["model"].update(unk_token=None), "it is not as SentencePiece makes them"),
        (lambda found: found.update(normalizer=None), "llama.cpp puts a space in front of every stretch of text"),
    ],
)
def test_sentencepiece_of_another_kind_is_refused(change: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(NotNamedError, match=why):
        Found.of(_sentencepiece(tmp_path, change), 720, None)


def test_a_space_at_the_first_stretch_alone_is_refused(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like_tokenizer(("<s>", "</s>"))
    save_tokenizer(tmp_path, tokenizer, bos="<s>", eos="</s>", pad=None, template=None)
    with pytest.raises(NotNamedError, match="llama.cpp puts a space in front of every stretch of text"):
        Found.of(load_tokenizer(str(tmp_path)), 720, None)
