"""Pairs as training sees them: every token in its place, what the cut took, and why a pair is left out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel

from simpo_cli.data.pair import Message, PreferencePair
from simpo_cli.data.tokenized_view import UNFINISHED, PairView, TokenView, token_pieces, tokens_in_words, view_pair
from simpo_cli.data.tokenizer import TextTokenizer, load_tokenizer
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataRecipe
from tests.tiny import (
    FAMILIES,
    byte_level_tokenizer,
    chatml_tokenizer,
    legacy_sentencepiece_tokenizer,
    sentencepiece_like_tokenizer,
    spaceless_sentencepiece_tokenizer,
)

DATA = DataRecipe(train="-", max_length=400, max_prompt_length=300)
PAIR = PreferencePair(
    (Message("user", "How do I invite a teammate?"),), "Open Settings, choose People.", "Ask again.", "p.jsonl:1"
)


@pytest.fixture
def chatml(tmp_path: Path) -> TextTokenizer:
    chatml_tokenizer(tmp_path)
    return load_tokenizer(str(tmp_path))


def parts_of(view: PairView) -> tuple[TokenView, TokenView, TokenView]:
    assert view.prompt is not None
    assert view.chosen is not None
    assert view.rejected is not None
    return view.prompt, view.chosen, view.rejected


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"deepseek_r1"}))  # refuses answers without reasoning
def test_the_pieces_are_the_rendering_and_the_response_with_its_end(family: str, tmp_path: Path) -> None:
    kind = FAMILIES[family]
    tokenizer = load_tokenizer(str(kind.save(tmp_path)))
    view = view_pair(1, PAIR, tokenizer, DATA)
    prompt, chosen, rejected = parts_of(view)
    assert PAIR.prompt[0].content in "".join(prompt.pieces)  # type: ignore[union-attr]
    for part, text in ((chosen, PAIR.chosen), (rejected, PAIR.rejected)):
        response = "".join(part.pieces)
        assert response.endswith(kind.end)
        assert text in response
        assert part.end == kind.end
        assert part.num_cut == 0
    assert view.left_out == ""
    assert view.encoded is not None
    assert tuple(view.encoded.chosen.tolist()) == chosen.ids


def test_what_is_cut_is_counted_and_the_lost_end_is_seen(chatml: TextTokenizer) -> None:
    whole = view_pair(1, PAIR, chatml, DATA)
    assert whole.bos == "<|im_start|>"
    prompt, chosen, rejected = parts_of(whole)
    limits = replace(DATA, max_prompt_length=10, max_length=10 + len(rejected.ids))
    cut_prompt, cut_chosen, cut_rejected = parts_of(view_pair(1, PAIR, chatml, limits))
    assert cut_prompt.num_cut == len(prompt.ids) - 10
    assert cut_prompt.ids == (*prompt.ids[:3], *prompt.ids[-7:])  # the header stays
    assert cut_chosen.num_cut == len(chosen.ids) - len(rejected.ids) > 0
    assert (cut_chosen.end, cut_rejected.end) == ("", "<|im_end|>")
    assert cut_rejected == rejected
    assert cut_chosen.pieces == chosen.pieces[: len(cut_chosen.ids)]


@pytest.mark.parametrize("policy", ["drop", "error"])
def test_a_pair_that_training_leaves_out_is_shown_with_the_reason(chatml: TextTokenizer, policy: str) -> None:
    data = replace(DATA, on_no_signal=policy)  # type: ignore[arg-type]
    same = replace(PAIR, chosen="Open Settings, and more", rejected="Open Settings, or not")
    alike = view_pair(1, same, chatml, replace(data, max_prompt_length=200, max_length=260))
    assert alike.left_out == ""
    assert alike.prompt is not None
    room = len(alike.prompt.ids) + 3
    cut = view_pair(1, same, chatml, replace(data, max_prompt_length=room - 3, max_length=room))
    assert (cut.left_out, cut.encoded) == ("responses identical after the cut", None)
    assert cut.chosen is not None
    assert "".join(cut.chosen.pieces) == "Open Settings, and more<|im_end|>"
    empty = view_pair(1, replace(PAIR, rejected=""), chatml, data)
    assert empty.encoded is None
    assert empty.left_out == "response without tokens"


def test_a_pair_over_the_limits_is_shown_whole(chatml: TextTokenizer) -> None:
    for overlong in ("drop", "error"):
        data = replace(DATA, overlong=overlong, max_prompt_length=10, max_length=20)  # type: ignore[arg-type]
        view = view_pair(1, PAIR, chatml, data)
        assert (view.left_out, view.encoded) == ("over the length limits", None)
        assert view.chosen is not None
        assert view.chosen.end == "<|im_end|>"


def test_a_pair_that_the_template_refuses_stops_or_is_shown_as_left_out(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(FAMILIES["gemma"].save(tmp_path)))
    pair = replace(PAIR, prompt=(Message("system", "Be brief."), *PAIR.prompt))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="System role not supported"):
        view_pair(1, pair, tokenizer, DATA)
    view = view_pair(1, pair, tokenizer, replace(DATA, on_bad_record="skip"))
    assert "System role not supported" in view.left_out
    assert view.prompt is None


def test_what_the_encoder_counts_is_told(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(FAMILIES["chatml_merging"].save(tmp_path)))
    assert "tokenized apart" in view_pair(1, PAIR, tokenizer, DATA).remarks
    tokenizer = load_tokenizer(str(FAMILIES["chatml"].save(tmp_path / "chatml")))
    spelled = replace(PAIR, chosen="Write <|im_end|> at the end.")
    assert view_pair(1, spelled, tokenizer, DATA).remarks == ("special token kept as text",)
    assert view_pair(1, PAIR, tokenizer, DATA).remarks == ()


def test_how_texts_become_tokens_in_words(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(FAMILIES["llama3"].save(tmp_path / "llama3")))
    said = tokens_in_words(tokenizer, DATA)
    assert said == (
        "by its chat template · BOS <|begin_of_text|> · answers end with <|end_of_text|> or <|eot_id|> or <|eom_id|>"
    )
    plain = load_tokenizer(str(tmp_path / "llama3"), chat_template="none")
    assert tokens_in_words(plain, DATA).startswith("plain text, no template · BOS <|begin_of_text|>")
    assert tokens_in_words(tokenizer, replace(DATA, rendered=True)).startswith("texts are rendered already")
    glm = load_tokenizer(str(FAMILIES["glm4"].save(tmp_path / "glm4")))
    assert "no BOS" in tokens_in_words(glm, DATA)


# The text of single tokens

TEXTS = [
    "How do I invite a teammate?",
    "  two spaces,\n\na tab\tand an end ",
    "Grüße, 你好, γειά, שלום and 👩‍👩‍👧 emoji 🙂🙂",
    "<s> a special token </s> inside",
    "x",
]


def text_tokenizer(tokenizer: Tokenizer) -> TextTokenizer:
    nothing: dict[str, Any] = {"special_tokens": {}, "templates": {}, "generation_end_ids": ()}
    return TextTokenizer(tokenizer, sha256="", template_where="", where="made here", **nothing)


def bytes_alone() -> Tokenizer:
    """A token for each byte, and none for more."""
    alphabet = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    return tokenizer


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
    tokenizer = bytes_alone()
    ids = tokenizer.encode("é🙂a").ids
    assert len(ids) == 2 + 4 + 1
    pieces = token_pieces(text_tokenizer(tokenizer), ids)
    assert pieces == [UNFINISHED, "é", UNFINISHED, UNFINISHED, UNFINISHED, "🙂", "a"]


def test_bytes_that_are_no_character_do_not_hold_up_the_rest() -> None:
    tokenizer = bytes_alone()
    broken = tokenizer.encode("é").ids[:1]
    pieces = token_pieces(text_tokenizer(tokenizer), broken * 9 + tokenizer.encode("abc").ids)
    assert len(pieces) == 12
    assert pieces[-2:] == ["b", "c"]
