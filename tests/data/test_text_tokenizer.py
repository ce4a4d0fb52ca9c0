"""Special tokens that texts spell out, kept as text."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from simpo_cli.data.tokenizer import EncodingError, TextTokenizer, load_tokenizer
from tests.tiny import FAMILIES, byte_level_tokenizer, change_config, legacy_sentencepiece_tokenizer, save_tokenizer


def saved(folder: Path, made: Tokenizer, *, bos: str | None = "<s>", eos: str = "</s>") -> TextTokenizer:
    """A tokenizer without a template, as we read its files."""
    save_tokenizer(folder, made, bos=bos, eos=eos, pad=None, template=None)
    return load_tokenizer(str(folder))


def test_stand_ins_for_many_special_tokens(tmp_path: Path) -> None:
    special = ("<s", "<s>", "<s>>", "[s]", "a.b", "(x|y)", *(f"<extra_{i}>" for i in range(300)))
    tokenizer = saved(tmp_path, byte_level_tokenizer(special, vocab_size=700), bos=None, eos="<s>")
    for text in ("<s>", "<s>>", "<s>>>", "x<sy", "aXb (x|y) (x) a.b", "<extra_12><extra_1> <extra_299", "[s"):
        (ids,) = tokenizer.encode_batch([text], "literal")
        assert not tokenizer.special_ids.intersection(ids)
        assert tokenizer.decode(ids) == text
        masked = tokenizer.mask_literals(text)
        assert tokenizer.encode_batch([masked], "masked") == [ids]
        assert tokenizer.has_special_literal(text) == (masked != text)
        assert tokenizer.has_special_literal(text) == any(one in text for one in special)
    # what a template wrote stays special beside it
    (mixed,) = tokenizer.encode_batch(["<s>" + tokenizer.mask_literals("a <s> b") + "<extra_7>"], "masked")
    assert [i for i in mixed if i in tokenizer.special_ids] == [
        tokenizer.encode_batch([text])[0][0] for text in ("<s>", "<extra_7>")
    ]
    assert tokenizer.decode(mixed) == "<s>a <s> b<extra_7>"


def test_special_tokens_that_merges_spell(tmp_path: Path) -> None:
    """Vocabularies converted from sentencepiece may merge `</` and `s>` to the end token itself."""
    description = json.loads(byte_level_tokenizer(("<s>", "</s>")).to_str())
    vocab, merges = description["model"]["vocab"], description["model"]["merges"]
    for part in ("</", "s>"):
        vocab[part] = max(vocab.values()) + 1
        merges.append(list(part))
    merges.append(["</", "s>"])
    for style in (merges, [" ".join(merge) for merge in merges]):
        description["model"]["merges"] = style
        description["pre_tokenizer"]["use_regex"] = False
        tokenizer = saved(tmp_path, Tokenizer.from_str(json.dumps(description)))
        (ids,) = tokenizer.encode_batch(["a</s>b"], "literal")
        assert tokenizer.eos_id not in ids
        assert tokenizer.decode(ids) == "a</s>b"


def test_a_tokenizer_that_cannot_keep_special_tokens_as_text_says_so(tmp_path: Path) -> None:
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "</s>": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = saved(tmp_path, made, bos=None)
    assert tokenizer.encode_batch(["a </s> a"]) == [[1, 2, 1]]
    assert tokenizer.encode_batch(["a </s> a"], "literal") == [[1, 0, 1]]
    change_config(tmp_path, unk_token="[UNK]")  # what is unknown may have this id, whatever it is
    assert load_tokenizer(str(tmp_path)).encode_batch(["a [UNK] </s>"], "literal") == [[1, 0, 0]]
    made = Tokenizer(models.WordLevel({"a": 1, "</s>": 2}))
    made.add_special_tokens([AddedToken("</s>")])
    tokenizer = TextTokenizer(
        made,
        sha256="",
        special_tokens={"eos_token": "</s>"},
        templates={},
        template_where="",
        generation_end_ids=[],
        where="x",
    )
    for _ in range(2):
        with pytest.raises(EncodingError, match="special token"):
            tokenizer.encode_batch(["</s>"], "literal")


def test_special_tokens_that_are_looked_for_in_normalized_text_are_no_breaks(tmp_path: Path) -> None:
    description = json.loads(legacy_sentencepiece_tokenizer(("<s>", "</s>")).to_str())
    for firm in (True, False):
        for token in description["added_tokens"]:
            token["normalized"] = not firm
        tokenizer, text = saved(tmp_path, Tokenizer.from_str(json.dumps(description))), "How </s>I do"
        assert tokenizer.last_break(text) == (text.index("</s>") if firm else 0)


def test_plain_prefix(tmp_path: Path) -> None:
    for name, prefix in (("llama3", [0]), ("chatml", []), ("mistral", []), ("vicuna", [])):
        tokenizer = load_tokenizer(str(FAMILIES[name].save(tmp_path / name)))
        theirs = AutoTokenizer.from_pretrained(tmp_path / name)
        assert tokenizer.plain_prefix == prefix
        assert theirs.encode("the") == prefix + theirs.encode("the", add_special_tokens=False)
