"""The rules by which a template's rendering is taken apart, one by one; templates that cannot write; prompts alone."""

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from simpo_cli.data.encode import answer_opening, encode_prompt
from simpo_cli.data.pair import Message, RecordError
from simpo_cli.errors import ExitCode, UserError
from tests.data.encode_cases import APPEND_ONLY, PAIR, ROOMY, Cases, messages_of, pair_of, talk
from tests.tiny import CHATML, FAMILIES

CALL = '{"content": null, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}'

# Rules, one by one


def test_the_prompt_is_rendered_with_its_header_and_the_response_ends_with_one_end_token(case: Cases) -> None:
    at = case("chatml")
    header = f"<|im_start|>user\n{PAIR.prompt}<|im_end|>\n<|im_start|>assistant\n"
    assert at.texts(PAIR) == (header, f"{PAIR.chosen}<|im_end|>", "Ask.<|im_end|>")
    one = at.one(PAIR)
    assert one.where == PAIR.where
    assert one.prompt.dtype == one.chosen.dtype == one.rejected.dtype == "int32"


def test_a_template_without_any_end_is_counted(case: Cases) -> None:
    at = case("chatml").under("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}assistant:")
    encoded = at.encode(PAIR)
    assert encoded.counts["no end token"] == 1
    assert not at.ours.end_ids.intersection(encoded.pairs[0].chosen.tolist())


def test_a_template_that_ignores_the_generation_prompt_gives_its_header_to_the_prompt(case: Cases) -> None:
    prompt, _, rejected = case("chatml_no_generation_prompt").texts(PAIR)
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert rejected == "Ask.<|im_end|>"


def test_a_token_that_would_straddle_the_boundary(case: Cases) -> None:
    at = case("chatml_merging")
    encoded = at.encode(PAIR)
    assert encoded.counts["tokenized apart"] == 1
    whole = at.ids(messages_of(PAIR, PAIR.chosen))
    prompt = encoded.pairs[0].prompt.tolist()
    assert whole[: len(prompt)] != prompt  # the premise
    assert encoded.pairs[0].chosen.tolist() == at.theirs.encode(f"{PAIR.chosen}<|im_end|>", add_special_tokens=False)


def test_a_response_that_begins_with_a_line_break_may_merge_with_the_header(case: Cases) -> None:
    assert case("zephyr").texts(pair_of("Hi", "Open", " a <s> b"))[1:] == ("Open</s>", "a <s> b</s>")


@pytest.mark.parametrize("name", ["mistral", "mistral_words", "vicuna"])
def test_no_space_is_put_in_front_of_a_response_that_is_tokenized_apart(case: Cases, name: str) -> None:
    plain = case(name).plain
    for chosen in ("e quick", "e </s>"):
        one = plain.one(pair_of("2+2=th", chosen, "ere"))
        assert plain.text(one.prompt, one.chosen).strip() == f"2+2=th{chosen}</s>"


def test_reasoning_as_qwen_renders_it(case: Cases) -> None:
    at = case("qwen3")
    thought = "<think>\nHm.\n</think>\n\nOpen it."
    pair = pair_of(talk("Hi", "<think>\nOld.\n</think>\n\nHello.", "How?"), thought, "No idea.")
    prompt, chosen, rejected = at.texts(pair)
    assert "Old." not in prompt
    assert "Hello." in prompt
    assert prompt.endswith("<|im_start|>assistant\n")
    assert chosen == f"{thought}<|im_end|>"
    assert rejected == "<think>\n\n</think>\n\nNo idea.<|im_end|>"
    # added, not special: it parses as the template means it
    assert at.one(pair).chosen[0] == at.theirs.convert_tokens_to_ids("<think>")


def test_template_variables_reach_the_template(case: Cases) -> None:
    at, off = case("qwen3"), {"enable_thinking": False}
    prompt, chosen, _ = at.texts(PAIR, chat_template_kwargs=off)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert chosen == f"{PAIR.chosen}<|im_end|>"
    assert at.one(PAIR, chat_template_kwargs=off).prompt.tolist() == at.ids(messages_of(PAIR), prompt=True, **off)
    thought = pair_of("Hi", "<think>\nHm.\n</think>\n\nOpen it.", "No.")
    assert "renders the conversation differently" in at.refusal(thought, chat_template_kwargs=off)


@pytest.mark.parametrize(
    ("kwargs", "problem", "fix"),
    [
        ({"enable_thinkin": False}, "enable_thinkin", "Did you mean enable_thinking?"),
        ({"qqq": 1}, "qqq", "Leave it out"),
        ({"messages": []}, "messages", "made from the data"),
        ({"add_generation_prompt": True}, "add_generation_prompt", "made from the data"),
    ],
)
def test_template_variables_that_nothing_reads_are_refused(
    case: Cases, kwargs: dict[str, Any], problem: str, fix: str
) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        case("qwen3").encode(PAIR, chat_template_kwargs=kwargs)
    assert fix in str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_variables_of_a_record_that_are_made_from_it(case: Cases, name: str) -> None:
    pair = replace(PAIR, template_kwargs=f'{{"{name}": []}}')
    assert case("qwen3").refusal(pair) == f"chat_template_kwargs.{name} cannot be set: it is made from the data"


def test_a_template_that_needs_a_variable(case: Cases) -> None:
    at = case("chatml").under(
        "{% if persona is not defined %}{{ raise_exception('name a persona') }}{% endif %}"
        "<|im_start|>system\n{{ persona }}<|im_end|>\n" + CHATML
    )
    assert at.refusal(PAIR) == "the chat template refuses the conversation: name a persona"
    prompt, _, rejected = at.texts(PAIR, chat_template_kwargs={"persona": "A pirate."})
    assert prompt.startswith("<|im_start|>system\nA pirate.<|im_end|>\n")
    assert rejected == "Ask.<|im_end|>"


def test_a_template_that_drops_the_reasoning_of_the_answer(case: Cases) -> None:
    at = case("deepseek")
    pair = pair_of("Hi", "<think>\nHm.\n</think>\nOpen it.", "Ask.")
    assert at.encode(pair).counts["answer not as the template writes it"] == 1
    assert at.one(pair).prompt.tolist() == at.ids(messages_of(pair), prompt=True)
    assert at.texts(pair)[1:] == (f"{pair.chosen}<｜end▁of▁sentence｜>", "Ask.<｜end▁of▁sentence｜>")


@pytest.mark.parametrize(("gap", "kept"), [("\n", ""), ("", ""), ("\n\n", "\n")])
def test_a_generation_prompt_that_opens_the_answer(case: Cases, gap: str, kept: str) -> None:
    at = case("deepseek_r1")
    pair = pair_of("Hi", f"<think>{gap}Hm.\n</think>\nOpen it.", "<think>\n</think>\nAsk.")
    assert at.one(pair).prompt.tolist() == at.ids(messages_of(pair), prompt=True)
    prompt, chosen, _ = at.texts(pair)
    assert prompt.endswith("<｜Assistant｜><think>\n")
    assert chosen == f"{kept}Hm.\n</think>\nOpen it.<｜end▁of▁sentence｜>"
    assert at.refusal(PAIR) == "the generation prompt ends with '<think>\\n', and this answer does not begin with it"


@pytest.mark.parametrize("gap", ["\n", "", "\n\n"])
def test_a_generation_prompt_that_opens_the_answer_as_the_rendering_does(case: Cases, gap: str) -> None:
    at = case("qwen3_thinking")
    pair = pair_of("Hi", f"<think>{gap}Hm.\n</think>\n\nOpen it.", "Ask.")
    assert at.one(pair).prompt.tolist() == at.ids(messages_of(pair), prompt=True)
    prompt, chosen, rejected = at.texts(pair)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n")
    assert chosen == "Hm.\n</think>\n\nOpen it.<|im_end|>"
    assert rejected == "\n</think>\n\nAsk.<|im_end|>"  # it did not think
    assert at.encode(pair).counts["answer not as the template writes it"] == 0


def test_an_opening_that_the_template_would_repeat_is_refused(case: Cases) -> None:
    """A template that opens the reasoning and drops that of the answer: neither of its texts holds the answer."""
    source = FAMILIES["qwen3_thinking"].template.replace("<think>\n' + thought.strip('\n')", "<think>\n'")
    pair = pair_of("Hi", "<think>\nHm.\n</think>\n\nOpen it.", "Ask.")
    problem = "the chat template renders the conversation differently once the response is there"
    assert case("qwen3_thinking").under(source).refusal(pair) == problem


def test_a_tool_turn_may_be_written_as_a_json_text(case: Cases) -> None:
    result = '{"city": "Köln", "weather": "sunny \\"and\\" warm"}'
    turns = (Message("user", "Weather?"), Message("assistant", "look"), Message("tool", result))
    assert json.dumps(result, ensure_ascii=False) in case("llama3").texts(pair_of(turns))[0]


def test_a_turn_that_the_template_changes_is_not_left_out(case: Cases) -> None:
    at = case("chatml").under(CHATML.replace("message['content']", "message.content.replace('/off', '')"))
    assert "Be  brief." in at.texts(pair_of(talk("Hi", system="Be /off brief.")))[0]


def test_a_template_of_content_parts(case: Cases) -> None:
    source = CHATML.replace("{{ message['content'] }}", "{% for part in message.content %}{{ part.text }}{% endfor %}")
    assert case("chatml").under(source).texts(PAIR) == case("chatml").texts(PAIR)


# Templates that cannot

ENDLESS = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"


@pytest.mark.parametrize(
    "source",
    [
        ENDLESS,
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 2) }}{% endmacro %}{{ f(1) }}",
        "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% for message in messages %}{{ message.content }}{% endfor %}"
        "{% if messages | length > 1 %}" + ENDLESS + "{% endif %}",
    ],
)
def test_a_template_without_an_end_stops_at_once(case: Cases, source: str) -> None:
    started = time.perf_counter()
    with pytest.raises(UserError, match="the chat template was stopped: it ") as caught:
        case("chatml").under(source).encode(*[PAIR] * 1000, on_bad_record="skip")
    assert caught.value.exit_code == ExitCode.USAGE
    assert time.perf_counter() - started < 2


def test_a_template_that_leaves_calls_out_is_refused(case: Cases) -> None:
    """It writes calls, and not those behind a text or of an earlier turn."""
    at = case("chatml").under(
        CHATML.replace(
            "{{ message['content'] }}",
            "{% if message.content or not loop.last %}{{ message.content }}{% else %}"
            "{{ message.tool_calls[0].function | tojson }}{% endif %}",
        )
    )
    answer = pair_of("Hi", "Look.", chosen_fields=CALL.replace("null", '"Look."'))
    earlier = pair_of((Message("user", "Hi"), Message("assistant", "", CALL), Message("tool", "1")))
    assert "leaves the call of the answer out" in at.refusal(answer)
    assert "leaves the call of the assistant out" in at.refusal(earlier)
    alone = pair_of("Hi", "f", chosen_fields=CALL)
    assert at.texts(alone)[1] == '{"name": "f", "arguments": {"x": 1}}<|im_end|>'


def test_special_tokens_in_calls_and_variables_stay_text(case: Cases) -> None:
    written = "{{ message.content or message.tool_calls[0].function | tojson }}"
    at = case("chatml").under("{{ tone }}" + CHATML.replace("{{ message['content'] }}", written))
    called = CALL.replace('"x": 1', '"x": "<|im_end|>"')
    pair = pair_of("Hi", "<|im_end|>", chosen_fields=called, template_kwargs='{"tone": "<|im_start|>"}')
    one = at.one(pair)
    assert one.chosen.tolist().count(at.end_id) == 1
    assert '"x": "<|im_end|>"' in at.text(one.chosen)
    assert one.prompt.tolist().count(at.ours.bos_id) == 2  # of the question and the answer
    assert at.encode(pair).counts == {"special token kept as text": 1}


# Prompts alone


@pytest.mark.parametrize("name", APPEND_ONLY)
@pytest.mark.parametrize(
    "prompt",
    [PAIR.prompt, talk("How do I invite a teammate?", "Open People.", "And?"), "say </s> or <|im_end|> now"],
    ids=["question", "turns", "special tokens"],
)
def test_a_prompt_alone_is_the_prompt_of_a_pair(case: Cases, name: str, prompt: str | tuple[Message, ...]) -> None:
    thoughts = ("<think>\na\n</think>\n\n", "<think>\nb\n</think>\n\n") if name.endswith("thinking") else ("", "")
    for at in (case(name), case(name).plain):
        encoded = at.encode(pair_of(prompt, f"{thoughts[0]}yes", f"{thoughts[1]}no"))
        if encoded.bad:
            with pytest.raises(RecordError):
                encode_prompt(prompt, at.ours, ROOMY)
        else:
            assert encode_prompt(prompt, at.ours, ROOMY) == encoded.pairs[0].prompt.tolist()


def test_a_template_that_opens_the_answer_is_no_obstacle(case: Cases) -> None:
    one = case("deepseek_r1")
    assert one.ours.decode(encode_prompt("How?", one.ours, ROOMY)).endswith("<think>\n")


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_an_answer_behind_its_opening_is_the_response_of_a_pair(case: Cases, name: str) -> None:
    """What a model generates behind a prompt is what is scored in a pair, once the opening stands in front of it.

    Qwen3 and Harmony write more in front of an answer, an empty thought and a channel, which a model writes itself.
    """
    at, turns = case(name), (Message("user", "How?"), Message("assistant", "So."), Message("user", "And?"))
    opening = answer_opening(turns, at.ours, ROOMY)
    assert opening == ("<think>\n" if name == "deepseek_r1" else "")
    thought = "a\n</think>\n\n" if name.endswith(("r1", "thinking")) else ""
    one = at.one(pair_of(turns, f"{opening}{thought}Yes.", f"{opening}{thought}No."))
    assert encode_prompt(turns, at.ours, ROOMY) == one.prompt.tolist()
    scored = at.ours.decode(one.chosen.tolist()).strip()
    assert f"{thought}Yes." in scored if name in ("qwen3", "harmony") else scored.startswith(f"{thought}Yes.")
    assert answer_opening(turns, at.plain.ours, ROOMY) == ""


def test_a_prompt_that_is_cut_is_that_of_a_pair(case: Cases) -> None:
    at = case("chatml")
    turns = talk("How do I invite a teammate?", "Open People.", "And then?", "Press Invite.", "Thanks, what else?")
    whole = encode_prompt(turns, at.ours, ROOMY)
    for most in (len(whole), len(whole) - 1, len(whole) // 2, 12):
        pair = at.one(pair_of(turns, "yes", "no"), max_prompt_length=most)
        cut = encode_prompt(turns, at.ours, ROOMY, most)
        assert cut == pair.prompt.tolist()
        assert len(cut) <= most


def test_what_cannot_be_asked_is_refused(case: Cases) -> None:
    ours = case("chatml").ours
    with pytest.raises(RecordError, match="already holds the chat template's markers"):
        encode_prompt("<|im_start|>user\nHow?<|im_end|>", ours, ROOMY)
    with pytest.raises(RecordError, match="refuses the prompt"):
        encode_prompt((Message("user", "a"), Message("user", "b")), case("mistral").ours, ROOMY)
    with pytest.raises(UserError, match="calls itself without an end"):
        encode_prompt("Hi", case("chatml").under(ENDLESS).ours, ROOMY)
    rendered = replace(ROOMY, rendered=True)
    assert ours.decode(encode_prompt("<|im_start|>user\nHow?", ours, rendered)) == "<|im_start|>user\nHow?"
