"""Pairs to tokens in batches: the cut, limits and losses, refusals, and the keys of prompts and pairs."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from simpo_cli.data.encode import pair_batches
from simpo_cli.data.pair import Message, PreferencePair, cut_warnings, pair_key, prompt_key
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.schema import DataRecipe
from tests.data.encode_cases import PAIR, Cases, pair_of, talk

LONG = "the quick brown fox jumps over the lazy dog again and again " * 4
LONG_CALL = json.dumps({"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": LONG}}}]})

# The cut


@pytest.mark.parametrize("plain", [False, True], ids=["chat", "plain"])
@pytest.mark.parametrize("num_kept", [0, 1, 2, 3])
def test_a_prompt_loses_its_oldest_turns_whole(case: Cases, num_kept: int, plain: bool) -> None:
    at = case("llama3").plain if plain else case("llama3")
    turns = talk(f"one {LONG}", "1", f"two {LONG}", "2", f"three {LONG}", system="Be brief.")
    shorter = [at.one(pair_of((turns[0], *turns[-2 * count + 1 :]))).prompt for count in (1, 2, 3)]
    most = len(shorter[num_kept - 1]) + 3 if num_kept else len(shorter[0]) - 20
    one = at.one(pair_of(turns), max_prompt_length=most)
    assert one.prompt_cut == (num_kept < 3)
    text = at.text(one.prompt)
    assert text.startswith("<|begin_of_text|>")
    assert "Be brief." in text
    if num_kept:
        assert one.prompt.tolist() == shorter[num_kept - 1].tolist()
        return
    assert len(one.prompt) == most
    header, _, rest = at.text(shorter[0]).partition("three")
    assert text.startswith(header)
    assert rest.endswith(text[len(header) :])


@pytest.mark.parametrize("room", [-1, 0, 5])
def test_a_system_turn_that_leaves_no_room_goes_too_before_a_marker_is_cut(case: Cases, room: int) -> None:
    at = case("llama3")
    turns = talk("one", "1", "the quick brown fox", system=LONG)
    alone = at.one(pair_of(turns[-1:])).prompt
    prompt = at.one(pair_of(turns), max_prompt_length=len(alone) + room).prompt
    text, whole = at.text(prompt), at.text(alone)
    header = whole.partition("the")[0]
    assert len(prompt) == len(alone) + min(room, 0)
    assert text.startswith(header)
    assert whole.endswith(text[len(header) :])
    assert len(text) == len(whole) if room >= 0 else len(text) < len(whole)


def test_of_the_last_turns_the_longest_loses_its_beginning(case: Cases) -> None:
    at = case("qwen3")
    turns = (Message("user", "Look it up."), Message("assistant", "look"), Message("tool", f"{LONG}. Blue."))
    prompt = at.one(pair_of(turns), max_prompt_length=100).prompt
    text = at.text(prompt)
    assert len(prompt) == 100
    assert text.startswith("<|im_start|>user\nLook it up.<|im_end|>\n<|im_start|>assistant\nlook<|im_end|>\n")
    assert "<tool_response>\n" in text
    assert "Blue.\n</tool_response>" in text
    assert LONG not in text


def test_a_call_stays_whole_where_a_prompt_is_cut(case: Cases) -> None:
    at, question = case("qwen3"), "Look it up, please, as fast as you can."
    turns = (Message("user", question), Message("assistant", LONG_CALL, LONG_CALL), Message("tool", "Blue."))
    whole = at.one(pair_of(turns)).prompt
    text = at.text(at.one(pair_of(turns), max_prompt_length=len(whole) - 4).prompt)
    assert text.startswith("<|im_start|>user\n")
    assert question not in text
    assert text.endswith(at.text(whole).partition("fast as ")[2])


def test_where_the_headers_do_not_fit_only_whole_turns_stay(case: Cases) -> None:
    turns = (Message("system", LONG), Message("user", "Hi"))
    prompt, _, _ = case("qwen3").texts(pair_of(turns), max_prompt_length=40)
    assert prompt.startswith("<|im_start|>user\nHi<|im_end|>\n")


def test_a_cut_right_before_a_turn_puts_no_second_bos_in_front(case: Cases) -> None:
    """In ChatML the BOS opens every turn, so what is left of a cut prompt may begin with it already."""
    at = case("chatml")
    assert at.ours.bos_id == at.theirs.convert_tokens_to_ids("<|im_start|>")
    whole = at.one(PAIR).prompt.tolist()
    header = whole[len(whole) - 1 - whole[::-1].index(at.ours.bos_id) :]
    prompts = {most: at.one(PAIR, max_prompt_length=most).prompt.tolist() for most in range(1, len(whole))}
    for most, prompt in prompts.items():
        assert prompt[0] == at.ours.bos_id
        assert prompt[:2] != [at.ours.bos_id] * 2
        assert len(prompt) == (most - 1 if most == len(header) + 1 else most)
    assert prompts[len(header) + 1] == header


def test_a_long_prompt_is_tokenized_once(case: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    at = case("llama3")
    given: list[str] = []
    usual = TextTokenizer.encode_batch

    def watched(self: TextTokenizer, texts: Any, way: Any = "parsed") -> Any:
        given.extend(texts)
        return usual(self, texts, way)

    at.one(PAIR)
    monkeypatch.setattr(TextTokenizer, "encode_batch", watched)
    at.one(pair_of("the quick brown fox " * 5_000))
    assert sum(map(len, given)) < 101_000


# Limits and losses

SHORT = {"max_length": 12, "max_prompt_length": 6}


def test_a_pair_over_the_limits_by_the_recipes_choice(case: Cases) -> None:
    at = case("chatml")
    assert at.encode(PAIR, **SHORT).counts == {"prompt cut": 1, "chosen cut": 1}
    dropped = at.encode(PAIR, **SHORT, overlong="drop")
    assert dropped.dropped == {"over the length limits": 1}
    assert not dropped.pairs
    with pytest.raises(UserError, match="prompt tokens") as caught:
        at.encode(PAIR, **SHORT, overlong="error")
    assert caught.value.where == PAIR.where
    assert at.encode(PAIR, overlong="error").counts == {}


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
def test_pairs_without_signal(case: Cases, chosen: str, rejected: str, fewest: int, reason: str) -> None:
    at, pair = case("llama3"), pair_of("Hi", chosen, rejected)
    encoded = at.encode(pair, min_response_tokens=fewest)
    assert encoded.dropped == {reason: 1}
    assert not encoded.pairs
    with pytest.raises(UserError, match=reason) as caught:
        at.encode(pair, min_response_tokens=fewest, on_no_signal="error")
    assert (caught.value.where, caught.value.exit_code) == (pair.where, ExitCode.USAGE)


def test_a_response_of_one_token_is_kept_and_counted(case: Cases) -> None:
    encoded = case("chatml").encode(pair_of("Hi", "a", "the quick"))
    assert len(encoded.pairs[0].chosen) == 2
    assert encoded.counts["response of one token"] == 1


def test_what_cut_pairs_would_need(case: Cases) -> None:
    at = case("chatml")
    one, few = at.one(PAIR), pair_of("Hi", "Yes", "No")
    for overlong in ("truncate", "drop"):
        needed = at.encode(PAIR, few, max_length=18, max_prompt_length=12, overlong=overlong).needed
        assert needed == {"max_prompt_length": Counter({0: 1, 64: 1}), "max_length": Counter({0: 1, 64: 1})}
    assert max(len(one.prompt), 12 + len(one.chosen)) <= 64
    assert at.encode(PAIR).needed == {"max_prompt_length": Counter({0: 1}), "max_length": Counter({0: 1})}


OF_PROMPTS = "data.max_prompt_length=256: data.max_prompt_length=448 data.max_length=704 keeps 95 % whole"


@pytest.mark.parametrize(
    ("prompts", "answers", "longest", "told"),
    [
        ({1024: 5}, {2048: 5}, None, []),  # one in twenty is few
        ({}, {640: 1, 1024: 6}, None, ["7 % of pairs have an answer cut at data.max_length=512: data.max_length=1024"]),
        ({}, {640: 4, 1024: 4}, None, ["8 % of pairs have an answer cut at data.max_length=512: data.max_length=640"]),
        ({448: 10, 4096: 5}, {}, None, [f"15 % of pairs have their prompt cut at {OF_PROMPTS}"]),
        ({448: 9}, {1024: 9}, 1024, ["9 % of pairs have their prompt cut", "and the model takes 1,024 tokens"]),
    ],
)
def test_a_cut_of_many_is_told_with_the_limits_that_help(
    prompts: dict[int, int], answers: dict[int, int], longest: int | None, told: list[str]
) -> None:
    data = DataRecipe(train="x", max_length=512, max_prompt_length=256)
    counts = {"max_prompt_length": Counter(prompts), "max_length": Counter(answers)}
    needed = {limit: Counter({0: 100 - few.total(), **few}) for limit, few in counts.items()}
    warnings = cut_warnings(needed, data, longest).values()
    assert len(warnings) == len(told)
    for warning, begun in zip(warnings, told, strict=True):
        assert begun in warning
    for warning in cut_warnings(needed, replace(data, overlong="drop")).values():
        assert " over data.max_" in warning
    assert cut_warnings({limit: Counter() for limit in counts}, data) == {}


# Batches


def test_refused_records_do_not_stop_the_others(case: Cases) -> None:
    at, twice = case("mistral"), (Message("user", "Hi"), Message("user", "Hi?"))
    pairs = [PreferencePair("Hi" if i % 3 else twice, f"a{i}", f"b{i}", f"f:{i}") for i in range(1500)]  # 3 batches
    skipped = at.encode(*pairs, on_bad_record="skip")
    assert [bad.where for bad in skipped.bad] == [f"f:{i}" for i in range(0, 1500, 3)]
    assert [pair.where for pair in skipped.pairs] == [f"f:{i}" for i in range(1500) if i % 3]
    stopped = at.encode(*pairs, on_bad_record="error")
    assert stopped.bad[0].where == "f:0"
    assert len(stopped.bad) < 500  # no need to read on


def test_batches_end_by_their_number_and_by_their_characters() -> None:
    pairs = [PreferencePair("p", "c" * size, "r", f"f:{i}") for i, size in enumerate([1] * 600 + [3_999_999, 1, 1])]
    batches = list(pair_batches(pairs))
    assert [pair.where for batch in batches for pair in batch] == [pair.where for pair in pairs]
    assert [len(batch) for batch in batches] == [512, 89, 2]
    assert list(pair_batches([])) == []


# Keys


def test_the_key_of_a_prompt(case: Cases) -> None:
    text = pair_of("Hi\ud800")
    assert prompt_key(text) == prompt_key(pair_of((Message("user", "Hi\ud800"),), "c", "d", tools="[]"))
    prompts = ("Hi", (Message("system", "Hi\ud800"),), talk("Hi\ud800", "a", "Hi\ud800"))
    assert len({prompt_key(pair) for pair in [text, *map(pair_of, prompts)]}) == 4
    # it does not depend on the lengths
    cut, whole = case("chatml").one(PAIR, **SHORT), case("chatml").one(PAIR)
    assert cut.prompt_key == whole.prompt_key == prompt_key(PAIR)


def test_the_key_of_a_pair_tells_its_texts_and_swapped_labels_swap_its_halves() -> None:
    pair = pair_of("Hi\ud800", "a", "b")
    assert pair_key(pair) == pair_key(PreferencePair((Message("user", "Hi\ud800"),), "a", "b", "elsewhere:9"))
    swapped = pair_key(pair_of("Hi\ud800", "b", "a"))
    assert swapped == pair_key(pair)[16:] + pair_key(pair)[:16] != pair_key(pair)
    assert len({pair_key(one) for one in [pair, pair_of("Hi"), pair_of("Hi\ud800", "a", "b ")]}) == 3
