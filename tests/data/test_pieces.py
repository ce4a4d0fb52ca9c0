"""The text of single tokens: together they are the text, each stands as it does in the text."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel

from simpo_cli.data.tokenized_view import UNFINISHED, token_pieces
from simpo_cli.data.tokenizer import TextTokenizer
from tests.tiny import (
    byte_level_tokenizer,
    legacy_sentencepiece_tokenizer,
    sentencepiece_like_tokenizer,
    spaceless_sentencepiece_tokenizer,
)

TEXTS = [
    "How do I invite a teammate?",
    "  two spaces,\n\na tab\tand an end ",
    "Grüße, 你好, γειά, שלום and 👩‍👩‍👧 emoji 🙂🙂",
    "<s> a special token </s> inside",
    "x",
]


def text_tokenizer(tokenizer: Tokenizer) -> TextTokenizer:
    return TextTokenizer(
        tokenizer,
        sha256="",
        special_tokens={},
        templates={},
        template_where="",
        generation_end_ids=(),
        where="made here",
    )


@pytest.mark.parametrize(
    "make",
    [
        byte_level_tokenizer,
        sentencepiece_like_tokenizer,
        legacy_sentencepiece_tokenizer,
        spaceless_sentencepiece_tokenizer,
    ],
)
@pytest.mark.parametrize("text", TEXTS)
def test_together_they_are_the_text(make: Callable[[tuple[str, ...]], Tokenizer], text: str) -> None:
    tokenizer = make(("<s>", "</s>"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = token_pieces(text_tokenizer(tokenizer), ids)
    assert len(pieces) == len(ids)
    assert "".join(piece for piece in pieces if piece != UNFINISHED) == tokenizer.decode(ids, skip_special_tokens=False)


def test_a_word_keeps_the_space_before_it() -> None:
    tokenizer = sentencepiece_like_tokenizer(())
    ids = tokenizer.encode("the quick brown fox").ids
    assert tokenizer.decode(ids[-1:]).startswith(("f", "o", "x", "b"))  # by itself the token has lost its space
    assert "".join(token_pieces(text_tokenizer(tokenizer), ids)).split(" ") == ["the", "quick", "brown", "fox"]


def test_a_character_of_several_tokens_is_whole_at_its_last_one() -> None:
    alphabet = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    ids = tokenizer.encode("é🙂a").ids
    assert len(ids) == 2 + 4 + 1
    pieces = token_pieces(text_tokenizer(tokenizer), ids)
    assert pieces == [UNFINISHED, "é", UNFINISHED, UNFINISHED, UNFINISHED, "🙂", "a"]


def test_bytes_that_are_no_character_do_not_hold_up_the_rest() -> None:
    alphabet = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    broken = tokenizer.encode("é").ids[:1]
    pieces = token_pieces(text_tokenizer(tokenizer), broken * 9 + tokenizer.encode("abc").ids)
    assert len(pieces) == 12
    assert pieces[-2:] == ["b", "c"]
