"""Turns in any order, reasoning in the answers, the BOS, and texts of any kind: against transformers, drawn anew."""

import json
from collections.abc import Callable

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpo_cli.data.encode import encode_pairs
from simpo_cli.data.pair import Message, PreferencePair
from simpo_cli.recipe.schema import DataRecipe
from tests.data.encode_cases import (
    APPEND_ONLY,
    Case,
    bare,
    draw_answers,
    draw_pair,
    draw_turns,
    messages_of,
    properties,
    require_ids_of_transformers,
    talk,
    texts_for,
)
from tests.tiny import FAMILIES


def renderings(at: Case, pair: PreferencePair) -> list[str] | str:
    """The prompt and the two whole conversations as transformers renders them, or why the template refuses them."""
    try:
        wholes = [at.rendered(messages_of(pair, answer)) for answer in (pair.chosen, pair.rejected)]
        return [at.rendered(messages_of(pair), prompt=True), *wholes]
    except jinja2.TemplateError as error:
        return str(error)


@pytest.mark.parametrize("name", APPEND_ONLY)
@given(data=st.data())
@properties
def test_turns_in_any_order_of_their_roles(case: Callable[[str], Case], name: str, data: st.DataObject) -> None:
    """Tool turns, two users or two assistants in a row: as transformers renders them, or refused for its reason."""
    at = case(name)
    pair = PreferencePair(draw_turns(data, at), *draw_answers(data, at), "f:1")
    rendered = renderings(at, pair)
    if isinstance(rendered, str):
        assert at.refusal(pair) == f"the chat template refuses the conversation: {rendered}"
        return
    prompt, *wholes = rendered
    left_out = [turn.role for i, turn in enumerate(pair.prompt) if f"t{i} " not in prompt]
    if not all(whole.startswith(prompt) for whole in wholes):
        # Qwen3 and Harmony write an answer otherwise where it is the last turn, so two of them in a row have no prefix
        assert pair.prompt[-1].role == "assistant"
        header = prompt.removeprefix(at.rendered(messages_of(pair)))
        one = at.one(pair)
        assert one.prompt.tolist() == at.ids(messages_of(pair), prompt=True)
        for whole, response in zip(wholes, (one.chosen, one.rejected), strict=True):
            scored = whole.rpartition(header)[2].split(at.family.end)[0] + at.family.end
            assert bare(at.ours.decode(response.tolist())) == bare(scored)
        assert at.encode(pair).counts["turns that the template writes otherwise once they are answered"] == 1
    elif left_out:
        assert at.refusal(pair) == f"the chat template leaves the {left_out[0]} turn out"
    else:
        require_ids_of_transformers(at, pair)


@pytest.mark.parametrize("form", ["messages", "plain", "rendered"])
@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "gemma", "zephyr", "deepseek", "phi3", "vicuna"])
@given(data=st.data())
@properties
def test_the_bos_that_is_rendered_and_never_two_at_the_start(
    case: Callable[[str], Case], name: str, form: str, data: st.DataObject
) -> None:
    at = case(name)
    assert at.family.bos is not None
    spelled = at.family.bos * data.draw(st.integers(0, 2))
    limit = data.draw(st.one_of(st.just(50_000), st.integers(1, 60)))
    limits = DataRecipe(train="x", max_length=100_000, max_prompt_length=limit, rendered=form == "rendered")
    pair = draw_pair(data, at)
    rendered = at.rendered(messages_of(pair), prompt=True)
    added = at.theirs.encode("the") != at.theirs.encode("the", add_special_tokens=False)
    match form:
        case "messages":
            tokenizer, prompt = at.ours, (Message("user", f"{spelled} {data.draw(texts_for(at))}"),)
            begins = rendered.startswith(at.family.bos)
        case "plain":
            tokenizer, prompt = at.plain, f"{spelled}{rendered}"
            begins = added
        case _:
            tokenizer, prompt = at.ours, f"{spelled}{rendered}"
            begins = added or prompt.startswith(at.family.bos)
    (one,) = encode_pairs([PreferencePair(prompt, pair.chosen, pair.rejected, "f:1")], tokenizer, limits).pairs
    ids = one.prompt.tolist()
    assert (ids[0] == at.ours.bos_id) == begins
    assert ids[:2] != [at.ours.bos_id] * 2
    assert 1 <= len(ids) <= limit


@pytest.mark.parametrize("name", ["qwen3", "qwen3_thinking", "deepseek", "deepseek_r1"])
@given(data=st.data())
@properties
def test_reasoning_is_there_once_and_old_reasoning_is_not(
    case: Callable[[str], Case], name: str, data: st.DataObject
) -> None:
    at = case(name)
    gap = data.draw(st.sampled_from(["", "\n", "\n\n"]))
    thought, (first, second) = data.draw(texts_for(at)), draw_answers(data, at)
    chosen = f"<think>{gap}{thought}{gap}</think>{gap}{first}"
    both = name == "deepseek_r1" or data.draw(st.booleans())  # its generation prompt opens every answer's reasoning
    rejected = f"<think>{gap}{thought}{gap}</think>{gap}{second}" if both else second
    old = "<think>\nt0ld\n</think>\n\nEarlier."
    prompt = talk("Hi", old, "And?") if data.draw(st.booleans()) else "Hi"
    pair = PreferencePair(prompt, chosen, rejected, "f:1")
    one = at.one(pair)
    think = at.theirs.convert_tokens_to_ids("<think>")
    assert one.prompt.tolist() == at.ids(messages_of(pair), prompt=True)
    for response, last, reasoned in ((one.chosen.tolist(), first, True), (one.rejected.tolist(), second, both)):
        ids = [*one.prompt.tolist(), *response]
        assert ids.count(think) == (reasoned or name.startswith("qwen3"))
        assert "t0ld" not in at.ours.decode(ids)
        answer = bare(at.ours.decode(response).removesuffix(at.family.end))
        assert answer.endswith(f"</think>{bare(last)}" if reasoned else bare(last))
        assert not reasoned or answer.removeprefix("<think>").startswith(bare(thought))
        assert response.count(at.end_id) == 1
    if name.startswith("qwen3"):
        require_ids_of_transformers(at, pair)


anything = st.text(st.characters(exclude_categories=[]), max_size=12)
PIECES = [
    "<think>",
    "</think>",
    "\0",
    "\U0010fffd0\U0010fffd",
    "\U0010fffe",
    "▁",
    "\u2028",
    "</",
    " ",
    "\n\n",
    "\ud800",
]


@pytest.mark.parametrize("name", sorted(FAMILIES))
@given(data=st.data())
@properties
def test_no_text_does_more_than_be_refused(case: Callable[[str], Case], name: str, data: st.DataObject) -> None:
    """Whatever texts, tools and limits: one pair, one drop or one refusal, within the limits, with one end at most."""
    at = case(name)
    marks = at.ours.turn_marks()
    own = [*at.ours.special_tokens.values(), marks.user_header, marks.answer_header, at.family.end]
    texts = st.lists(st.one_of(st.sampled_from([*PIECES, *own]), anything), max_size=4).map("".join)
    roles = st.sampled_from(["user", "assistant", "tool", "system"])
    turns = st.lists(st.builds(Message, roles, texts), min_size=1, max_size=3).map(tuple)
    tools = st.none() | st.dictionaries(texts, texts, max_size=2).map(json.dumps)
    pair = PreferencePair(
        data.draw(texts | turns), data.draw(texts), data.draw(texts), "f:1", tools=data.draw(tools, label="tools")
    )
    max_length = data.draw(st.integers(8, 80))
    recipe = DataRecipe(
        train="x",
        max_length=max_length,
        max_prompt_length=data.draw(st.integers(1, max_length - 1)),
        min_response_tokens=data.draw(st.integers(1, 3)),
        overlong=data.draw(st.sampled_from(["truncate", "drop"])),
        on_bad_record="skip",
        rendered=data.draw(st.booleans()),
    )
    encoded = at.encode(pair, data=recipe)
    assert len(encoded.pairs) + len(encoded.bad) + encoded.dropped.total() == 1
    for one in encoded.pairs:
        assert 1 <= len(one.prompt) <= recipe.max_prompt_length
        for response in (one.chosen.tolist(), one.rejected.tolist()):
            assert len(one.prompt) + len(response) <= max_length
            assert sum(i not in at.ours.end_ids for i in response) >= recipe.min_response_tokens
            assert not at.ours.end_ids.intersection(response[:-1])
        assert min(map(min, (one.prompt, one.chosen, one.rejected))) >= 0
        assert max(map(max, (one.prompt, one.chosen, one.rejected))) < at.ours.vocab_size
