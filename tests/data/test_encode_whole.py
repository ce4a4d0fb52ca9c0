"""Pairs not written whole: cut, without a template, or by one that cannot write them; and prompts alone."""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.data.encode import AS_TRANSCRIPT, encode_pairs, encode_prompt
from simpo_cli.data.pair import EncodedPairs, Message, PreferencePair, RecordError, cut_warnings
from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.schema import DataRecipe
from tests.data.encode_cases import APPEND_ONLY, PAIR, ROOMY, Case, talk
from tests.tiny import CHATML

LONG = "the quick brown fox jumps over the lazy dog again and again " * 4
LONG_CALL = json.dumps({"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": LONG}}}]})
CALL = '{"content": null, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}'


def encoded_by(at: Case, folder: Path, source: str, *pairs: PreferencePair, **data: Any) -> EncodedPairs:
    """The pairs under another template."""
    template = folder / "t.jinja"
    template.write_text(source)
    tokenizer = load_tokenizer(str(at.folder), chat_template=str(template))
    return encode_pairs(pairs or [PAIR], tokenizer, DataRecipe(train="x", **data))


# The cut


@pytest.mark.parametrize("plain", [False, True], ids=["chat", "plain"])
@pytest.mark.parametrize("num_kept", [0, 1, 2, 3])
def test_a_prompt_loses_its_oldest_turns_whole(case: Callable[[str], Case], num_kept: int, plain: bool) -> None:
    at = case("llama3")
    tokenizer = at.plain if plain else at.ours
    turns = talk(f"one {LONG}", "1", f"two {LONG}", "2", f"three {LONG}", system="Be brief.")
    pair = PreferencePair(turns, "yes", "no", "f:1")
    shorter = [replace(pair, prompt=(turns[0], *turns[-2 * count + 1 :])) for count in (1, 2, 3)]
    lengths = [len(encode_pairs([one], tokenizer, ROOMY).pairs[0].prompt) for one in shorter]
    most = lengths[num_kept - 1] + 3 if num_kept else lengths[0] - 20
    (one,) = encode_pairs([pair], tokenizer, replace(ROOMY, max_prompt_length=most)).pairs
    assert one.prompt_cut == (num_kept < 3)
    text = tokenizer.decode(one.prompt.tolist())
    assert text.startswith("<|begin_of_text|>")
    assert "Be brief." in text
    if num_kept:
        assert one.prompt.tolist() == encode_pairs([shorter[num_kept - 1]], tokenizer, ROOMY).pairs[0].prompt.tolist()
        return
    assert len(one.prompt) == most
    whole = tokenizer.decode(encode_pairs([shorter[0]], tokenizer, ROOMY).pairs[0].prompt.tolist())
    header, _, rest = whole.partition("three")
    assert text.startswith(header)
    assert rest.endswith(text[len(header) :])


@pytest.mark.parametrize("room", [-1, 0, 5])
def test_a_system_turn_that_leaves_no_room_goes_too_before_a_marker_is_cut(
    case: Callable[[str], Case], room: int
) -> None:
    at = case("llama3")
    turns = talk("one", "1", "the quick brown fox", system=LONG)
    alone = at.one(PreferencePair(turns[-1:], "yes", "no", "f:1")).prompt.tolist()
    (one,) = at.encode(
        PreferencePair(turns, "yes", "no", "f:1"), data=replace(ROOMY, max_prompt_length=len(alone) + room)
    ).pairs
    text, whole = (at.ours.decode(ids) for ids in (one.prompt.tolist(), alone))
    header = whole.partition("the")[0]
    assert len(one.prompt) == len(alone) + min(room, 0)
    assert text.startswith(header)
    assert whole.endswith(text[len(header) :])
    assert len(text) == len(whole) if room >= 0 else len(text) < len(whole)


def test_of_the_last_turns_the_longest_loses_its_beginning(case: Callable[[str], Case]) -> None:
    at = case("qwen3")
    turns = (Message("user", "Look it up."), Message("assistant", "look"), Message("tool", f"{LONG}. Blue."))
    pair = PreferencePair(turns, "Blue.", "Red.", "f:1")
    (one,) = at.encode(pair, data=replace(ROOMY, max_prompt_length=100)).pairs
    text = at.ours.decode(one.prompt.tolist())
    assert len(one.prompt) == 100
    assert text.startswith("<|im_start|>user\nLook it up.<|im_end|>\n<|im_start|>assistant\nlook<|im_end|>\n")
    assert "<tool_response>\n" in text
    assert "Blue.\n</tool_response>" in text
    assert "the quick brown fox jumps over the lazy dog again and again " * 4 not in text


def test_a_call_stays_whole_where_a_prompt_is_cut(case: Callable[[str], Case]) -> None:
    at = case("qwen3")
    turns = (Message("user", "Look it up, please, as fast as you can."), Message("assistant", LONG_CALL, LONG_CALL))
    pair = PreferencePair((*turns, Message("tool", "Blue.")), "Blue.", "Red.", "f:1")
    whole = at.ours.decode(at.encode(pair).pairs[0].prompt.tolist())
    (one,) = at.encode(pair, data=replace(ROOMY, max_prompt_length=len(at.encode(pair).pairs[0].prompt) - 4)).pairs
    text = at.ours.decode(one.prompt.tolist())
    assert text.startswith("<|im_start|>user\n")
    assert "Look it up, please, as fast as you can." not in text
    assert text.endswith(whole[whole.index("you can.") :])


def test_where_the_headers_do_not_fit_only_whole_turns_stay(case: Callable[[str], Case]) -> None:
    at = case("qwen3")
    turns = (Message("system", LONG), Message("user", "Hi"))
    pair = PreferencePair(turns, "Yes", "No", "f:1")
    (one,) = at.encode(pair, data=replace(ROOMY, max_prompt_length=40)).pairs
    assert at.ours.decode(one.prompt.tolist()).startswith("<|im_start|>user\nHi<|im_end|>\n")


def test_what_cut_pairs_would_need(case: Callable[[str], Case]) -> None:
    at = case("chatml")
    one = at.one(PAIR)
    short = DataRecipe(train="x", max_length=18, max_prompt_length=12)
    few = PreferencePair("Hi", "Yes", "No", "f:2")
    for data in (short, replace(short, overlong="drop")):
        needed = at.encode(PAIR, few, data=data).needed
        assert needed == {"max_prompt_length": Counter({0: 1, 64: 1}), "max_length": Counter({0: 1, 64: 1})}
    assert max(len(one.prompt), 12 + len(one.chosen)) <= 64
    assert at.encode(PAIR).needed == {"max_prompt_length": Counter({0: 1}), "max_length": Counter({0: 1})}


@pytest.mark.parametrize(
    ("prompts", "answers", "longest", "told"),
    [
        ({1024: 5}, {2048: 5}, None, []),  # one in twenty is few
        (
            {},
            {640: 1, 1024: 6},
            None,
            ["7 % of pairs have an answer cut at data.max_length=512: data.max_length=1024 keeps"],
        ),
        (
            {},
            {640: 4, 1024: 4},
            None,
            ["8 % of pairs have an answer cut at data.max_length=512: data.max_length=640 keeps"],
        ),
        (
            {448: 10, 4096: 5},
            {},
            None,
            [
                "15 % of pairs have their prompt cut at data.max_prompt_length=256: "
                "data.max_prompt_length=448 data.max_length=704 keeps 95 % whole"
            ],
        ),
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


# No template


def test_conversations_without_a_template_are_counted_unless_it_is_meant(
    case: Callable[[str], Case], tmp_path: Path
) -> None:
    at = case("chatml")
    pair = PreferencePair(talk("Hi"), "Yes.", "No.", "f:1")
    assert encode_pairs([pair, PAIR], at.plain, ROOMY).counts == {AS_TRANSCRIPT: 1}
    assert encode_pairs([pair], at.plain, replace(ROOMY, chat_template="none")).counts == {}
    assert at.encode(pair).counts == {}
    for source in ("", " \n"):
        folder = at.family.save(tmp_path / f"m{len(source)}")
        (folder / "chat_template.jinja").write_text(source)
        assert encode_pairs([pair], load_tokenizer(str(folder)), ROOMY).counts == {AS_TRANSCRIPT: 1}


def test_plain_text_has_calls_as_text_and_no_reasoning(case: Callable[[str], Case]) -> None:
    at = case("chatml")
    prompt = (Message("user", "Hi"), Message("assistant", "Hm.\nHo.", '{"content": "Ho.", "thinking": "Hm."}'))
    pair = PreferencePair(prompt, '{"name": "f"}', "No.", "f:1", tools="[]", chosen_fields=CALL)
    encoded = encode_pairs([pair], at.plain, replace(ROOMY, chat_template="none"))
    (one,) = encoded.pairs
    assert at.ours.decode(one.prompt.tolist()) == "\n\nHuman: Hi\n\nAssistant: Ho.\n\nAssistant:"
    assert at.ours.decode(one.chosen.tolist()) == ' {"name": "f", "arguments": {"x": 1}}<|im_end|>'
    assert encoded.counts == {"reasoning that the template does not write": 1, "tools unknown to the template": 1}


# Templates that cannot


@pytest.mark.parametrize(
    "source",
    [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 2) }}{% endmacro %}{{ f(1) }}",
        "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% for message in messages %}{{ message.content }}{% endfor %}"
        "{% if messages | length > 1 %}{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}{% endif %}",
    ],
)
def test_a_template_without_an_end_stops_at_once(case: Callable[[str], Case], tmp_path: Path, source: str) -> None:
    at = case("chatml")
    started = time.perf_counter()
    with pytest.raises(UserError, match="the chat template was stopped: it ") as caught:
        encoded_by(at, tmp_path, source, *[PAIR] * 1000, on_bad_record="skip")
    assert caught.value.exit_code == ExitCode.USAGE
    assert time.perf_counter() - started < 2


def test_a_prompt_alone_meets_a_template_without_an_end(case: Callable[[str], Case], tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")
    with pytest.raises(UserError, match="calls itself without an end"):
        encode_prompt("Hi", load_tokenizer(str(case("chatml").folder), chat_template=str(template)), ROOMY)


def test_a_template_that_leaves_calls_out_is_refused(case: Callable[[str], Case], tmp_path: Path) -> None:
    """It writes calls, and not those behind a text or of an earlier turn."""
    at = case("chatml")
    source = CHATML.replace(
        "{{ message['content'] }}",
        "{% if message.content or not loop.last %}{{ message.content }}{% else %}"
        "{{ message.tool_calls[0].function | tojson }}{% endif %}",
    )
    both = CALL.replace("null", '"Look."')
    answer = PreferencePair("Hi", "Look.", "No.", "f:1", chosen_fields=both)
    earlier = PreferencePair(
        (Message("user", "Hi"), Message("assistant", "", CALL), Message("tool", "1")), "a", "b", "f:1"
    )
    alone = PreferencePair("Hi", "f", "No.", "f:1", chosen_fields=CALL)
    assert "leaves the call of the answer out" in encoded_by(at, tmp_path, source, answer).bad[0].problem
    assert "leaves the call of the assistant out" in encoded_by(at, tmp_path, source, earlier).bad[0].problem
    (one,) = encoded_by(at, tmp_path, source, alone).pairs
    assert at.ours.decode(one.chosen.tolist()) == '{"name": "f", "arguments": {"x": 1}}<|im_end|>'


def test_special_tokens_in_calls_and_variables_stay_text(case: Callable[[str], Case], tmp_path: Path) -> None:
    at = case("chatml")
    source = "{{ tone }}" + CHATML.replace(
        "{{ message['content'] }}", "{{ message.content or message.tool_calls[0].function | tojson }}"
    )
    called = CALL.replace('"x": 1', '"x": "<|im_end|>"')
    pair = PreferencePair(
        "Hi", "<|im_end|>", "No.", "f:1", chosen_fields=called, template_kwargs='{"tone": "<|im_start|>"}'
    )
    encoded = encoded_by(at, tmp_path, source, pair)
    (one,) = encoded.pairs
    assert one.chosen.tolist().count(at.end_id) == 1
    assert '"x": "<|im_end|>"' in at.ours.decode(one.chosen.tolist())
    assert one.prompt.tolist().count(at.ours.bos_id) == 2  # of the question and the answer
    assert encoded.counts == {"special token kept as text": 1}


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_variables_of_a_record_that_are_made_from_it(case: Callable[[str], Case], name: str) -> None:
    pair = replace(PAIR, template_kwargs=f'{{"{name}": []}}')
    assert case("qwen3").refusal(pair) == f"chat_template_kwargs.{name} cannot be set: it is made from the data"


def test_a_template_of_content_parts(case: Callable[[str], Case], tmp_path: Path) -> None:
    at = case("chatml")
    source = CHATML.replace("{{ message['content'] }}", "{% for part in message.content %}{{ part.text }}{% endfor %}")
    (one,) = encoded_by(at, tmp_path, source).pairs
    assert one.prompt.tolist() == at.one(PAIR).prompt.tolist()
    assert one.chosen.tolist() == at.one(PAIR).chosen.tolist()


TALK = (Message("user", "How do I invite a teammate?"), Message("assistant", "Open People."), Message("user", "And?"))


@pytest.mark.parametrize("name", APPEND_ONLY)
@pytest.mark.parametrize("prompt", ["How do I invite a teammate?", TALK, "say </s> or <|im_end|> now"])
def test_a_prompt_alone_is_the_prompt_of_a_pair(
    case: Callable[[str], Case], name: str, prompt: str | tuple[Message, ...]
) -> None:
    one = case(name)
    answers = (
        ("<think>\na\n</think>\n\nyes", "<think>\nb\n</think>\n\nno") if name.endswith("thinking") else ("yes", "no")
    )
    for tokenizer in (one.ours, one.plain):
        encoded = encode_pairs([PreferencePair(prompt, *answers, where="here")], tokenizer, ROOMY)
        if encoded.bad:
            with pytest.raises(RecordError):
                encode_prompt(prompt, tokenizer, ROOMY)
        else:
            assert encode_prompt(prompt, tokenizer, ROOMY) == encoded.pairs[0].prompt.tolist()


def test_a_template_that_opens_the_answer_is_no_obstacle(case: Callable[[str], Case]) -> None:
    one = case("deepseek_r1")
    assert one.ours.decode(encode_prompt("How?", one.ours, ROOMY)).endswith("<think>\n")


def test_what_cannot_be_asked_is_refused(case: Callable[[str], Case]) -> None:
    chatml = case("chatml")
    with pytest.raises(RecordError, match="already holds the chat template's markers"):
        encode_prompt("<|im_start|>user\nHow?<|im_end|>", chatml.ours, ROOMY)
    with pytest.raises(RecordError, match="refuses the prompt"):
        encode_prompt((Message("user", "a"), Message("user", "b")), case("mistral").ours, ROOMY)
    rendered = replace(ROOMY, rendered=True)
    assert (
        chatml.ours.decode(encode_prompt("<|im_start|>user\nHow?", chatml.ours, rendered)) == "<|im_start|>user\nHow?"
    )
