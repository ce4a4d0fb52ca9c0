"""Plain text, limits, losses, refusals and the keys of prompts."""

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from simpo_cli.data.encode import LONGEST_WORD, encode_pairs, pair_batches
from simpo_cli.data.pair import Message, PreferencePair, pair_key, prompt_key
from simpo_cli.data.tokenizer import TextTokenizer, load_tokenizer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.schema import DataRecipe
from tests.data.encode_cases import PAIR, ROOMY, Case, talk

# Plain text


def test_plain_text_has_what_the_tokenizer_adds_and_eos(case: Callable[[str], Case]) -> None:
    llama = case("llama3").plain
    (one,) = encode_pairs([PAIR], llama, ROOMY).pairs
    assert llama.decode(one.prompt.tolist()) == f"<|begin_of_text|>{PAIR.prompt}"
    assert llama.decode(one.chosen.tolist()) == f"{PAIR.chosen}<|eot_id|>"
    twice = PreferencePair("<|begin_of_text|><|begin_of_text|>Hi", "a", "b", "f:1")
    (one,) = encode_pairs([twice], llama, DataRecipe(train="x", rendered=True)).pairs
    assert llama.decode(one.prompt.tolist()) == "<|begin_of_text|>Hi"


def test_what_the_tokenizer_adds_is_not_added_to_rendered_text_that_holds_it(
    case: Callable[[str], Case], tmp_path: Path
) -> None:
    at = case("glm4")
    tokenizer = Tokenizer.from_file(str(at.folder / "tokenizer.json"))
    names = ("[gMASK]", "<sop>")
    tokenizer.post_processor = TemplateProcessing(
        single="[gMASK] <sop> $A", special_tokens=[(name, tokenizer.token_to_id(name)) for name in names]
    )
    shutil.copytree(at.folder, tmp_path, dirs_exist_ok=True)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(str(tmp_path))
    for text in ("[gMASK]<sop><|user|>\nHi<|assistant|>\n", "<|user|>\nHi<|assistant|>\n"):
        (one,) = encode_pairs([PreferencePair(text, "a", "b", "f:1")], ours, DataRecipe(train="x", rendered=True)).pairs
        assert ours.decode(one.prompt.tolist()) == "[gMASK]<sop><|user|>\nHi<|assistant|>\n"


def test_conversations_become_transcripts_in_plain_text(case: Callable[[str], Case]) -> None:
    plain = case("chatml").plain
    pair = PreferencePair(talk("Hi", "Hello.", "How?", system="Be brief."), "Open it.", "Ask.", "f:1")
    encoded = encode_pairs([pair], plain, ROOMY)
    (one,) = encoded.pairs
    assert plain.decode(one.prompt.tolist()) == (
        "\n\nSystem: Be brief.\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: How?\n\nAssistant:"
    )
    assert plain.decode(one.chosen.tolist()) == " Open it.<|im_end|>"
    assert encoded.counts["tokenized apart"] == 0


# Limits and losses


def test_a_pair_over_the_limits_by_the_recipes_choice(case: Callable[[str], Case]) -> None:
    at = case("chatml")
    short = {"train": "x", "max_length": 12, "max_prompt_length": 6}
    assert at.encode(PAIR, data=DataRecipe(**short)).counts == {"prompt cut": 1, "chosen cut": 1}
    dropped = at.encode(PAIR, data=DataRecipe(**short, overlong="drop"))
    assert dropped.dropped == {"over the length limits": 1}
    assert not dropped.pairs
    with pytest.raises(UserError, match="prompt tokens") as caught:
        at.encode(PAIR, data=DataRecipe(**short, overlong="error"))
    assert caught.value.where == PAIR.where
    assert at.encode(PAIR, data=DataRecipe(train="x", overlong="error")).counts == {}


@pytest.mark.parametrize(
    ("chosen", "rejected", "fewest", "reason"),
    [
        ("Open.", "Open.", 1, "responses identical after the cut"),
        (" Open. ", "Open.", 1, "responses identical after the cut"),  # the template trims
        ("", "Open.", 1, "response without tokens"),
        ("Open.", "  \n", 1, "response without tokens"),
        ("Open the settings.", "a", 2, "response of fewer than 2 tokens"),
    ],
)
def test_pairs_without_signal(
    case: Callable[[str], Case], chosen: str, rejected: str, fewest: int, reason: str
) -> None:
    at = case("llama3")
    pair = PreferencePair("Hi", chosen, rejected, "f:9")
    encoded = at.encode(pair, data=DataRecipe(train="x", min_response_tokens=fewest))
    assert encoded.dropped == {reason: 1}
    assert not encoded.pairs
    with pytest.raises(UserError, match=reason) as caught:
        at.encode(pair, data=DataRecipe(train="x", min_response_tokens=fewest, on_no_signal="error"))
    assert caught.value.where == "f:9"
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_response_of_one_token_is_kept_and_counted(case: Callable[[str], Case]) -> None:
    encoded = case("chatml").encode(PreferencePair("Hi", "a", "the quick", "f:1"))
    assert len(encoded.pairs[0].chosen) == 2
    assert encoded.counts["response of one token"] == 1


def test_a_cut_right_before_a_turn_puts_no_second_bos_in_front(case: Callable[[str], Case]) -> None:
    """In ChatML the BOS opens every turn, so what is left of a cut prompt may begin with it already."""
    at = case("chatml")
    assert at.ours.bos_id == at.theirs.convert_tokens_to_ids("<|im_start|>")
    whole = at.one(PAIR).prompt.tolist()
    header = whole[len(whole) - 1 - whole[::-1].index(at.ours.bos_id) :]
    for most in range(1, len(whole)):
        prompt = at.one(PAIR, DataRecipe(train="x", max_length=100, max_prompt_length=most)).prompt.tolist()
        assert prompt[0] == at.ours.bos_id
        assert prompt[:2] != [at.ours.bos_id] * 2
        assert len(prompt) == (most - 1 if most == len(header) + 1 else most)
    assert (
        at.one(PAIR, DataRecipe(train="x", max_length=100, max_prompt_length=len(header) + 1)).prompt.tolist() == header
    )


def test_refused_records_do_not_stop_the_others(case: Callable[[str], Case]) -> None:
    at = case("mistral")
    twice = (Message("user", "Hi"), Message("user", "Hi?"))
    pairs = [
        PreferencePair("Hi" if i % 3 else twice, f"a{i}", f"b{i}", f"f:{i + 1}") for i in range(1500)
    ]  # several batches
    skipped = at.encode(*pairs, data=DataRecipe(train="x", on_bad_record="skip"))
    assert [bad.where for bad in skipped.bad] == [f"f:{i + 1}" for i in range(0, 1500, 3)]
    assert [pair.where for pair in skipped.pairs] == [f"f:{i + 1}" for i in range(1500) if i % 3]
    stopped = at.encode(*pairs, data=DataRecipe(train="x", on_bad_record="error"))
    assert stopped.bad[0].where == "f:1"
    assert len(stopped.bad) < 500  # no need to read on


def test_batches_end_by_their_number_and_by_their_characters() -> None:
    pairs = [PreferencePair("p", "c" * size, "r", f"f:{i}") for i, size in enumerate([1] * 600 + [3_999_999, 1, 1])]
    sizes = [[pair.where for pair in batch] for batch in pair_batches(pairs)]
    assert [where for batch in sizes for where in batch] == [pair.where for pair in pairs]
    assert [len(batch) for batch in sizes] == [512, 89, 2]
    assert list(pair_batches([])) == []


@pytest.mark.parametrize("place", ["prompt", "chosen", "rejected"])
def test_half_a_character_is_refused_and_its_neighbours_kept(case: Callable[[str], Case], place: str) -> None:
    texts = {"prompt": "Hi", "chosen": "a", "rejected": "b"} | {place: "x\ud800y"}
    bad = PreferencePair(**texts, where="f:2")
    good = [PreferencePair("Hi", "a", "b", f"f:{i}") for i in (1, 3, 4)]
    for special in ("", "<|im_end|>"):
        pairs = [good[0], PreferencePair(bad.prompt, bad.chosen + special, bad.rejected, "f:2"), *good[1:]]
        encoded = case("chatml").encode(*pairs, data=DataRecipe(train="x", on_bad_record="skip"))
        assert [pair.where for pair in encoded.pairs] == ["f:1", "f:3", "f:4"]
        assert [(one.where, one.problem) for one in encoded.bad] == [
            ("f:2", "the text holds half a character (a lone surrogate)")
        ]


def test_a_text_that_the_vocabulary_cannot_say_is_refused(tmp_path: Path) -> None:
    from tokenizers import models

    from tests.tiny import save_tokenizer

    tokenizer = Tokenizer(models.Unigram([("a", -1.0), ("b", -1.0), ("</s>", 0.0)]))
    save_tokenizer(tmp_path, tokenizer, bos=None, eos="</s>", pad=None, template=None)
    pairs = [PreferencePair("a", "ab", "b", "f:1"), PreferencePair("a", "a", "z", "f:2")]
    data = DataRecipe(train="x", on_bad_record="skip")
    encoded = encode_pairs(pairs, load_tokenizer(str(tmp_path)), data)
    assert [pair.where for pair in encoded.pairs] == ["f:1"]
    assert encoded.bad[0].where == "f:2"
    assert re.match("the text cannot be tokenized: ", encoded.bad[0].problem)


def test_a_prompt_without_tokens_is_refused(case: Callable[[str], Case]) -> None:
    plain = case("chatml").plain
    (bad,) = encode_pairs([PreferencePair("", "a", "b", "f:1")], plain, ROOMY).bad
    assert bad.problem == "the prompt has no tokens"


@pytest.mark.parametrize("piece", ["ab", " ", "\n"])
def test_a_word_or_gap_of_ten_megabytes_is_refused_at_once(case: Callable[[str], Case], piece: str) -> None:
    long = piece * (10_000_000 // len(piece))
    started = time.perf_counter()
    for pair, place in (
        (PreferencePair(f"What is{long}?", "a", "b", "f:1"), "prompt"),
        (PreferencePair("Hi", long, "b", "f:1"), "chosen"),
        (PreferencePair("Hi", "a", f"x{long}", "f:1"), "rejected"),
    ):
        encoded = case("chatml").encode(pair)
        assert encoded.bad[0].problem == f"{place}: a word, or a gap, of more than {LONGEST_WORD:,} characters"
        assert len(encoded.bad[0].text) < 1_000_000
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("name", ["chatml", "mistral", "gemma", "vicuna"])
def test_a_long_word_within_the_limit_takes_seconds(case: Callable[[str], Case], name: str) -> None:
    started = time.perf_counter()
    case(name).one(PreferencePair("Hi", "ab" * (LONGEST_WORD // 20), "b", "f:1"))
    assert time.perf_counter() - started < 5


def test_a_long_prompt_is_tokenized_once(case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch) -> None:
    at = case("llama3")
    given: list[str] = []
    usual = TextTokenizer.encode_batch

    def watched(self: TextTokenizer, texts: Any, way: Any = "parsed") -> Any:
        given.extend(texts)
        return usual(self, texts, way)

    at.one(PAIR)
    monkeypatch.setattr(TextTokenizer, "encode_batch", watched)
    at.one(PreferencePair("the quick brown fox " * 5_000, "a", "b", "f:1"))
    assert sum(map(len, given)) < 101_000


# Keys


def test_the_key_of_a_prompt() -> None:
    text = PreferencePair("Hi\ud800", "a", "b", "f:1")
    message = PreferencePair((Message("user", "Hi\ud800"),), "c", "d", "g:2", tools="[]")
    assert prompt_key(text) == prompt_key(message)
    others = [
        PreferencePair("Hi", "a", "b", "f:1"),
        PreferencePair((Message("system", "Hi\ud800"),), "a", "b", "f:1"),
        PreferencePair(talk("Hi\ud800", "a", "Hi\ud800"), "a", "b", "f:1"),
    ]
    assert len({prompt_key(pair) for pair in [text, *others]}) == 4


def test_the_key_does_not_depend_on_the_lengths(case: Callable[[str], Case]) -> None:
    at = case("chatml")
    cut = at.one(PAIR, DataRecipe(train="x", max_length=12, max_prompt_length=6))
    assert cut.prompt_key == at.one(PAIR).prompt_key == prompt_key(PAIR)


def test_the_key_of_a_pair_tells_its_texts_and_swapped_labels_swap_its_halves() -> None:
    pair = PreferencePair("Hi\ud800", "a", "b", "f:1")
    assert pair_key(pair) == pair_key(PreferencePair((Message("user", "Hi\ud800"),), "a", "b", "elsewhere:9"))
    swapped = pair_key(PreferencePair("Hi\ud800", "b", "a", "f:1"))
    assert swapped == pair_key(pair)[16:] + pair_key(pair)[:16] != pair_key(pair)
    others = [PreferencePair("Hi", "a", "b", "f:1"), PreferencePair("Hi\ud800", "a", "b ", "f:1")]
    assert len({pair_key(one) for one in [pair, *others]}) == 3
