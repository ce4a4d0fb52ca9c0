"""The rules by which a template's rendering is taken apart, one by one, and conversations of several turns."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.data.encode import encode_pairs
from simpo_cli.data.pair import Message, PreferencePair
from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.schema import DataRecipe
from tests.data.encode_cases import PAIR, ROOMY, Case, messages_of, talk
from tests.tiny import FAMILIES

# Rules, one by one


def test_the_prompt_is_rendered_with_its_header_and_the_response_ends_with_one_end_token(
    case: Callable[[str], Case],
) -> None:
    at = case("chatml")
    one = at.one(PAIR)
    assert at.ours.decode(one.prompt.tolist()) == f"<|im_start|>user\n{PAIR.prompt}<|im_end|>\n<|im_start|>assistant\n"
    assert at.ours.decode(one.chosen.tolist()) == f"{PAIR.chosen}<|im_end|>"
    assert at.ours.decode(one.rejected.tolist()) == "Ask.<|im_end|>"
    assert one.where == PAIR.where
    assert one.prompt.dtype == one.chosen.dtype == one.rejected.dtype == "int32"


@pytest.mark.parametrize(
    ("name", "bos"),
    [("llama3", True), ("mistral", True), ("gemma", True), ("deepseek", True), ("zephyr", False), ("qwen3", False)],
)
def test_bos_is_what_the_template_renders(case: Callable[[str], Case], name: str, bos: bool) -> None:
    at = case(name)
    prompt = at.one(PAIR).prompt.tolist()
    assert (prompt[0] == at.ours.bos_id) == bos
    assert prompt.count(at.ours.bos_id) == bos


def test_the_end_is_the_templates_own_where_tokenizer_and_generation_config_name_another(
    case: Callable[[str], Case],
) -> None:
    for name in ("gemma", "chatml_base_eos", "chatml_loose", "phi3", "harmony", "glm4"):
        at = case(name)
        one = at.one(PAIR)
        assert one.chosen[-1] == one.rejected[-1] == at.end_id
        assert at.end_id in at.ours.end_ids
        assert at.encode(PAIR).counts["no end token"] == 0


def test_a_template_without_any_end_is_counted(case: Callable[[str], Case], tmp_path: Path) -> None:
    template = tmp_path / "endless.jinja"
    template.write_text("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}assistant:")
    tokenizer = load_tokenizer(str(case("chatml").folder), chat_template=str(template))
    encoded = encode_pairs([PAIR], tokenizer, ROOMY)
    assert encoded.counts["no end token"] == 1
    assert not tokenizer.end_ids.intersection(encoded.pairs[0].chosen.tolist())


def test_a_template_that_ignores_the_generation_prompt_gives_its_header_to_the_prompt(
    case: Callable[[str], Case],
) -> None:
    at = case("chatml_no_generation_prompt")
    one = at.one(PAIR)
    assert at.ours.decode(one.prompt.tolist()).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert at.ours.decode(one.rejected.tolist()) == "Ask.<|im_end|>"


def test_a_token_that_would_straddle_the_boundary(case: Callable[[str], Case]) -> None:
    at = case("chatml_merging")
    encoded = at.encode(PAIR)
    assert encoded.counts["tokenized apart"] == 1
    whole = at.ids(messages_of(PAIR, PAIR.chosen))
    prompt = encoded.pairs[0].prompt.tolist()
    assert whole[: len(prompt)] != prompt  # the premise
    assert encoded.pairs[0].chosen.tolist() == at.theirs.encode(f"{PAIR.chosen}<|im_end|>", add_special_tokens=False)


def test_a_response_that_begins_with_a_line_break_may_merge_with_the_header(case: Callable[[str], Case]) -> None:
    at = case("zephyr")
    pair = PreferencePair("Hi", "Open", " a <s> b", "f:1")
    texts = [at.ours.decode(response.tolist()) for response in (at.one(pair).chosen, at.one(pair).rejected)]
    assert texts == ["Open</s>", "a <s> b</s>"]


def test_no_space_is_put_in_front_of_a_response_that_is_tokenized_apart(case: Callable[[str], Case]) -> None:
    for name in ("mistral", "mistral_words", "vicuna"):
        plain = case(name).plain
        cases = PreferencePair("2+2=th", "e quick", "ere", "f:1"), PreferencePair("2+2=th", "e </s>", "ere", "f:2")
        for pair in cases:
            (one,) = encode_pairs([pair], plain, ROOMY).pairs
            assert (
                plain.decode([*one.prompt.tolist(), *one.chosen.tolist()]).strip() == f"{pair.prompt}{pair.chosen}</s>"
            )


def test_reasoning_as_qwen_renders_it(case: Callable[[str], Case]) -> None:
    at = case("qwen3")
    thought = "<think>\nHm.\n</think>\n\nOpen it."
    history = talk("Hi", "<think>\nOld.\n</think>\n\nHello.", "How?")
    pair = PreferencePair(history, thought, "No idea.", "f:1")
    one = at.one(pair)
    prompt = at.ours.decode(one.prompt.tolist())
    assert "Old." not in prompt
    assert "Hello." in prompt
    assert prompt.endswith("<|im_start|>assistant\n")
    assert at.ours.decode(one.chosen.tolist()) == f"{thought}<|im_end|>"
    assert at.ours.decode(one.rejected.tolist()) == "<think>\n\n</think>\n\nNo idea.<|im_end|>"
    think = at.theirs.convert_tokens_to_ids("<think>")
    assert one.chosen[0] == think  # added, not special: it parses as the template means it


def test_template_variables_reach_the_template(case: Callable[[str], Case]) -> None:
    at = case("qwen3")
    off = DataRecipe(train="x", chat_template_kwargs={"enable_thinking": False})
    one = at.one(PAIR, off)
    assert at.ours.decode(one.prompt.tolist()).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert at.ours.decode(one.chosen.tolist()) == f"{PAIR.chosen}<|im_end|>"
    assert one.prompt.tolist() == at.ids(messages_of(PAIR), prompt=True, enable_thinking=False)
    thought = PreferencePair("Hi", "<think>\nHm.\n</think>\n\nOpen it.", "No.", "f:1")
    assert "renders the conversation differently" in at.refusal(thought, off)


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
    case: Callable[[str], Case], kwargs: dict[str, Any], problem: str, fix: str
) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        case("qwen3").encode(PAIR, data=DataRecipe(train="x", chat_template_kwargs=kwargs))
    assert fix in str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_template_that_needs_a_variable(case: Callable[[str], Case], tmp_path: Path) -> None:
    template = tmp_path / "needs.jinja"
    template.write_text(
        "{% if persona is not defined %}{{ raise_exception('name a persona') }}{% endif %}"
        "<|im_start|>system\n{{ persona }}<|im_end|>\n" + FAMILIES["chatml"].template
    )
    tokenizer = load_tokenizer(str(case("chatml").folder), chat_template=str(template))
    (bad,) = encode_pairs([PAIR], tokenizer, ROOMY).bad
    assert bad.problem == "the chat template refuses the conversation: name a persona"
    named = DataRecipe(train="x", chat_template_kwargs={"persona": "A pirate."})
    (one,) = encode_pairs([PAIR], tokenizer, named).pairs
    assert tokenizer.decode(one.prompt.tolist()).startswith("<|im_start|>system\nA pirate.<|im_end|>\n")
    assert tokenizer.decode(one.rejected.tolist()) == "Ask.<|im_end|>"


def test_a_template_that_drops_the_reasoning_of_the_answer(case: Callable[[str], Case]) -> None:
    at = case("deepseek")
    pair = PreferencePair("Hi", "<think>\nHm.\n</think>\nOpen it.", "Ask.", "f:1")
    encoded = at.encode(pair)
    assert encoded.counts["answer not as the template writes it"] == 1
    (one,) = encoded.pairs
    assert one.prompt.tolist() == at.ids(messages_of(pair), prompt=True)
    assert at.ours.decode(one.chosen.tolist()) == f"{pair.chosen}<｜end▁of▁sentence｜>"
    assert at.ours.decode(one.rejected.tolist()) == "Ask.<｜end▁of▁sentence｜>"


def test_a_generation_prompt_that_opens_the_answer(case: Callable[[str], Case]) -> None:
    at = case("deepseek_r1")
    for gap in ("\n", "", "\n\n"):
        pair = PreferencePair("Hi", f"<think>{gap}Hm.\n</think>\nOpen it.", "<think>\n</think>\nAsk.", "f:1")
        one = at.one(pair)
        assert one.prompt.tolist() == at.ids(messages_of(pair), prompt=True)
        assert at.ours.decode(one.prompt.tolist()).endswith("<｜Assistant｜><think>\n")
        kept = gap.removeprefix("\n")
        assert at.ours.decode(one.chosen.tolist()) == f"{kept}Hm.\n</think>\nOpen it.<｜end▁of▁sentence｜>"
    assert at.refusal(PAIR) == "the generation prompt ends with '<think>\\n', and this answer does not begin with it"


def test_a_generation_prompt_that_opens_the_answer_as_the_rendering_does(case: Callable[[str], Case]) -> None:
    at = case("qwen3_thinking")
    for gap in ("\n", "", "\n\n"):
        pair = PreferencePair("Hi", f"<think>{gap}Hm.\n</think>\n\nOpen it.", "Ask.", "f:1")
        encoded = at.encode(pair)
        (one,) = encoded.pairs
        assert one.prompt.tolist() == at.ids(messages_of(pair), prompt=True)
        assert at.ours.decode(one.prompt.tolist()).endswith("<|im_start|>assistant\n<think>\n")
        assert at.ours.decode(one.chosen.tolist()) == "Hm.\n</think>\n\nOpen it.<|im_end|>"
        assert at.ours.decode(one.rejected.tolist()) == "\n</think>\n\nAsk.<|im_end|>"  # it did not think
        assert encoded.counts["answer not as the template writes it"] == 0


def test_an_opening_that_the_template_would_repeat_is_refused(case: Callable[[str], Case], tmp_path: Path) -> None:
    """A template that opens the reasoning and drops that of the answer: neither of its texts holds the answer."""
    template = tmp_path / "drops.jinja"
    template.write_text(FAMILIES["qwen3_thinking"].template.replace("<think>\n' + thought.strip('\n')", "<think>\n'"))
    tokenizer = load_tokenizer(str(case("qwen3_thinking").folder), chat_template=str(template))
    pair = PreferencePair("Hi", "<think>\nHm.\n</think>\n\nOpen it.", "Ask.", "f:1")
    (bad,) = encode_pairs([pair], tokenizer, ROOMY).bad
    assert bad.problem == "the chat template renders the conversation differently once the response is there"


# Conversations


@pytest.mark.parametrize("name", ["chatml", "llama3", "qwen3", "zephyr", "deepseek"])
def test_system_and_several_turns(case: Callable[[str], Case], name: str) -> None:
    at = case(name)
    pair = PreferencePair(talk("Hi", "Hello.", "How?", system="Be brief."), "Open it.", "Ask.", "f:1")
    text = at.ours.decode(at.one(pair).prompt.tolist())
    assert all(turn.content in text for turn in pair.prompt if isinstance(turn, Message))


def test_a_conversation_that_the_template_refuses(case: Callable[[str], Case]) -> None:
    twice = PreferencePair((Message("user", "Hi"), Message("user", "Hi?")), "a", "b", "f:3")
    assert case("mistral").refusal(twice) == (
        "the chat template refuses the conversation: "
        "Conversation roles must alternate user/assistant/user/assistant/..."
    )
    system = PreferencePair(talk("Hi", system="Be brief."), "a", "b", "f:3")
    assert case("gemma").refusal(system).endswith("System role not supported")


def test_tool_turns_are_kept_where_the_template_knows_them(case: Callable[[str], Case]) -> None:
    result = '{"city": "Köln", "weather": "sunny \\"and\\" warm"}'
    turns = (Message("user", "Weather?"), Message("assistant", "look"), Message("tool", result))
    pair = PreferencePair(turns, "Sunny.", "Rain.", "f:1", tools='[{"name": "weather"}]')
    for name in ("chatml", "qwen3"):
        assert result in case(name).ours.decode(case(name).one(pair).prompt.tolist())
    llama = case("llama3")  # writes a tool's result as a JSON text
    assert json.dumps(result, ensure_ascii=False) in llama.ours.decode(llama.one(pair).prompt.tolist())
    for name in ("deepseek", "vicuna"):
        at = case(name)
        if name == "deepseek":
            assert at.refusal(pair) == "the chat template leaves the tool turn out"
    qwen = case("qwen3")
    assert qwen.one(pair).prompt.tolist() == qwen.ids(messages_of(pair), prompt=True, tools=[{"name": "weather"}])
    assert qwen.encode(pair).counts["tools unknown to the template"] == 0
    assert case("chatml").encode(pair).counts["tools unknown to the template"] == 1


def test_a_turn_that_the_template_changes_is_not_left_out(case: Callable[[str], Case], tmp_path: Path) -> None:
    template = tmp_path / "changes.jinja"
    template.write_text(
        FAMILIES["chatml"].template.replace("message['content']", "message.content.replace('/off', '')")
    )
    tokenizer = load_tokenizer(str(case("chatml").folder), chat_template=str(template))
    pair = PreferencePair(talk("Hi", system="Be /off brief."), "a", "b", "f:1")
    (one,) = encode_pairs([pair], tokenizer, ROOMY).pairs
    assert "Be  brief." in tokenizer.decode(one.prompt.tolist())
