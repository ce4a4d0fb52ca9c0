"""Pairs as training sees them: every token in its place, what the cut took, and why a pair is left out."""

from dataclasses import replace
from pathlib import Path

import pytest

from simpo_cli.data.pair import Message, PreferencePair
from simpo_cli.data.tokenized_view import tokens_in_words, view_pair
from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataRecipe
from tests.tiny import FAMILIES, chatml_tokenizer

DATA = DataRecipe(train="-", max_length=400, max_prompt_length=300)
PAIR = PreferencePair(
    (Message("user", "How do I invite a teammate?"),), "Open Settings, choose People.", "Ask again.", "p.jsonl:1"
)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"deepseek_r1"}))  # refuses answers without reasoning
def test_the_pieces_are_the_rendering_and_the_response_with_its_end(family: str, tmp_path: Path) -> None:
    kind = FAMILIES[family]
    tokenizer = load_tokenizer(str(kind.save(tmp_path)))
    view = view_pair(1, PAIR, tokenizer, DATA)
    assert (view.prompt, view.chosen, view.rejected) != (None, None, None)
    assert view.prompt is not None
    assert view.chosen is not None
    assert view.rejected is not None
    assert PAIR.prompt[0].content in "".join(view.prompt.pieces)  # type: ignore[union-attr]
    for part, text in ((view.chosen, PAIR.chosen), (view.rejected, PAIR.rejected)):
        shown = "".join(part.pieces)
        assert shown.endswith(kind.end)
        assert text in shown
        assert part.end == kind.end
        assert part.num_cut == 0
    assert view.left_out == ""
    assert view.encoded is not None
    assert tuple(view.encoded.chosen.tolist()) == view.chosen.ids


def test_what_is_cut_is_counted_and_the_lost_end_is_seen(tmp_path: Path) -> None:
    chatml_tokenizer(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    whole = view_pair(1, PAIR, tokenizer, DATA)
    assert whole.prompt is not None
    assert whole.chosen is not None
    assert whole.rejected is not None
    assert whole.bos == "<|im_start|>"
    cut = view_pair(1, PAIR, tokenizer, replace(DATA, max_prompt_length=10, max_length=10 + len(whole.rejected.ids)))
    assert cut.prompt is not None
    assert cut.chosen is not None
    assert cut.rejected is not None
    assert cut.prompt.num_cut == len(whole.prompt.ids) - 10
    assert cut.prompt.ids == (*whole.prompt.ids[:3], *whole.prompt.ids[-7:])  # the header stays
    assert cut.chosen.num_cut == len(whole.chosen.ids) - len(whole.rejected.ids) > 0
    assert (cut.chosen.end, cut.rejected.end) == ("", "<|im_end|>")
    assert cut.rejected == whole.rejected
    assert cut.chosen.pieces == whole.chosen.pieces[: len(cut.chosen.ids)]


@pytest.mark.parametrize("policy", ["drop", "error"])
def test_a_pair_that_training_leaves_out_is_shown_with_the_reason(tmp_path: Path, policy: str) -> None:
    chatml_tokenizer(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    data = replace(DATA, on_no_signal=policy)  # type: ignore[arg-type]
    same = replace(PAIR, chosen="Open Settings, and more", rejected="Open Settings, or not")
    alike = view_pair(1, same, tokenizer, replace(data, max_prompt_length=200, max_length=260))
    assert alike.left_out == ""
    assert alike.prompt is not None
    room = len(alike.prompt.ids) + 3
    cut = view_pair(1, same, tokenizer, replace(data, max_prompt_length=room - 3, max_length=room))
    assert (cut.left_out, cut.encoded) == ("responses identical after the cut", None)
    assert cut.chosen is not None
    assert "".join(cut.chosen.pieces) == "Open Settings, and more<|im_end|>"
    empty = view_pair(1, replace(PAIR, rejected=""), tokenizer, data)
    assert empty.encoded is None
    assert empty.left_out == "response without tokens"


def test_a_pair_over_the_limits_is_shown_whole(tmp_path: Path) -> None:
    chatml_tokenizer(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    for overlong in ("drop", "error"):
        data = replace(DATA, overlong=overlong, max_prompt_length=10, max_length=20)  # type: ignore[arg-type]
        view = view_pair(1, PAIR, tokenizer, data)
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
