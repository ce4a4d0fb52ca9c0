"""Records to pairs: every form that people write gives the prompt, the answers and the order that they mean."""

import json
from collections import Counter
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpo_cli.data.formats import NoSignalError, detect, to_pair
from simpo_cli.data.messages import as_transcript, split_transcripts, transcript_turns, turns_of
from simpo_cli.data.pair import Message, PreferencePair, RecordError, RecordNote, prompt_messages
from simpo_cli.errors import UserError
from tests.data.layouts import said, talk

U, A, S, T = (lambda text, role=role: Message(role, text) for role in ("user", "assistant", "system", "tool"))


def pair(record: dict[str, Any], **columns: str) -> PreferencePair:
    return to_pair(record, detect([record], columns, "prefs.jsonl"), "prefs.jsonl:1", Counter())


def read(record: dict[str, Any], **columns: str) -> tuple[Any, str, str]:
    found = pair(record, **columns)
    return found.prompt, found.chosen, found.rejected


def decision(record: dict[str, Any], **columns: str) -> str:
    return detect([record], columns, "prefs.jsonl").described()


def share_gpt(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in turns]


def dialogues(first: str, second: str) -> dict[str, str]:
    """Two transcripts that begin with these questions."""
    return {
        "chosen": f"\n\nHuman: {first}\n\nAssistant: x",
        "rejected": f"\n\nHuman: {second}\n\nAssistant: y",
    }


LISTS = {"chosen": said(("assistant", "c")), "rejected": said(("assistant", "r"))}


# The forms


def test_three_texts() -> None:
    record = {"prompt": " p ", "chosen": " c\n", "rejected": "r "}
    assert read(record) == (" p ", " c\n", "r ")  # nothing is stripped
    assert decision(record) == "plain text, explicit prompt"


def test_instruction_with_input_system_and_history() -> None:
    record = {"instruction": "Add.", "input": "1 and 2", "chosen": "3", "rejected": "4"}
    assert read(record)[0] == "Add.\n1 and 2"
    assert read({**record, "input": ""})[0] == "Add."
    assert read({**record, "input": None})[0] == "Add."
    assert read({**record, "system": "Be short."})[0] == (S("Be short."), U("Add.\n1 and 2"))
    assert read({**record, "history": [["a", "b"]]})[0] == (U("a"), A("b"), U("Add.\n1 and 2"))
    layout = detect([{k: v for k, v in record.items() if k != "input"}], {}, "prefs")
    assert to_pair(record, layout, "prefs:2", Counter()).prompt == "Add.\n1 and 2"


def test_messages_with_an_explicit_prompt() -> None:
    prompt = said(("system", "s"), ("user", "u"))
    wanted = ((S("s"), U("u")), "c", "r")
    for chosen, rejected in (
        ("c", "r"),
        (said(("assistant", "c")), said(("assistant", "r"))),
        (said(("assistant", "c"))[0], said(("assistant", "r"))[0]),
        (prompt + said(("assistant", "c")), prompt + said(("assistant", "r"))),
    ):
        assert read({"prompt": prompt, "chosen": chosen, "rejected": rejected}) == wanted
    assert read({"prompt": "u", **LISTS}) == ("u", "c", "r")


def test_messages_with_an_implicit_prompt() -> None:
    before = (("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"))
    record = {"chosen": said(*before, ("assistant", "c")), "rejected": said(*before, ("assistant", "r"))}
    assert read(record) == ((S("s"), U("u"), A("a"), U("v")), "c", "r")
    assert decision(record) == "conversational, implicit prompt"
    renamed = {"chosen_messages": record["chosen"], "rejected_messages": record["rejected"]}
    assert read(renamed) == read(record)
    # UltraFeedback's form: the text of the prompt and the whole of chosen stand beside the conversations
    beside = {**record, "prompt": "v", "messages": record["chosen"], "score_chosen": 9.0, "score_rejected": 8.0}
    assert read(beside) == read(record)


@pytest.mark.parametrize("text", ["where  does it end?", "WHERE DOES IT END?", "Where does\nit end? "])
def test_a_prompt_beside_its_turns_may_differ_in_case_and_white_space(text: str) -> None:
    """It is only said again there: the turns are used, and the difference is counted."""
    asked = ("user", "Where does it end?")
    record = {"prompt": text, "chosen": said(asked, ("assistant", "c")), "rejected": said(asked, ("assistant", "r"))}
    warnings: Counter[RecordNote] = Counter()
    read_pair = to_pair(record, detect([record], {}, "prefs.jsonl"), "prefs.jsonl:1", warnings)
    assert read_pair.prompt == (U("Where does it end?"),)
    assert [count for what, count in warnings.items() if "by case or white space" in what] == [1]
    warnings.clear()
    to_pair({**record, "prompt": " Where does it end?\n"}, detect([record], {}, "prefs.jsonl"), "", warnings)
    assert not warnings


def test_a_second_assistant_turn_belongs_to_the_prompt() -> None:
    record = {
        "chosen": said(("user", "u"), ("assistant", "a"), ("assistant", "c")),
        "rejected": said(("user", "u"), ("assistant", "a"), ("assistant", "r")),
    }
    assert read(record) == ((U("u"), A("a")), "c", "r")


def test_tools() -> None:
    record = {
        "conversations": share_gpt(("human", "u"), ("function_call", '{"name": "f"}'), ("observation", "{}")),
        "tools": '[{"name": "f"}]',
        "chosen": "c",
        "rejected": "r",
    }
    found = pair(record)
    assert found.prompt == (U("u"), A('{"name": "f"}'), T("{}"))
    assert found.tools == '[{"name": "f"}]'
    assert pair({**record, "tools": [{"name": "f"}]}).tools == '[{"name": "f"}]'
    assert pair({**record, "tools": None}).tools is None
    since = {"name": "f", "since": date(2024, 1, 2)}  # from a table
    assert pair({**record, "tools": [since]}).tools == '[{"name": "f", "since": "2024-01-02"}]'
    for tools in (3, "no json", "3", "[1] 2", "[" * 500 + "]" * 500):
        with pytest.raises(RecordError, match="tools: "):
            pair({**record, "tools": tools})


def test_tool_calls_of_openai_become_text() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    turns = turns_of(
        [{"role": "user", "content": "u"}, {"role": "assistant", "content": None, "tool_calls": [call]}], "m"
    )
    assert turns[1] == A('{"name": "f", "arguments": {"x": 1}}')
    for arguments in ("{x: 1}", "[" * 500 + "]" * 500, '{"x": 1} 2'):  # what is no JSON that we take stays text
        call["function"] = {"name": "f", "arguments": arguments}
        (turn,) = turns_of([{"role": "assistant", "tool_calls": [call]}], "m")
        assert json.loads(turn.content) == {"name": "f", "arguments": arguments}
    with pytest.raises(RecordError, match=r"m\[0\].tool_calls\[0\]: expected a call"):
        turns_of([{"role": "assistant", "content": "", "tool_calls": [{}]}], "m")


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "value": "a"}, {"type": "text", "text": "b"}, "c", {"text": "d"}]
    assert turns_of([{"role": "user", "content": parts}], "m") == [U("abcd")]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *(("human", "user"), ("User", "user"), ("gpt", "assistant"), ("model", "assistant")),
        *(("observation", "tool"), ("tool", "tool"), ("developer", "system"), ("function_call", "assistant")),
    ],
)
def test_roles(name: str, role: str) -> None:
    assert turns_of([{"role": name, "content": "x"}], "m")[0].role == role
    assert turns_of([{"from": name, "value": "x"}], "m")[0].role == role


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"prompt": "p", "chosen": {"from": "human", "value": "c"}, "rejected": "r"}, "chosen: the answer is by user"),
        (
            {"conversations": share_gpt(("human", "u"), ("gpt", "c")), "chosen": "c", "rejected": "r"},
            "conversations ends with the chosen answer itself",
        ),
        (LISTS, "prompt is missing"),
        (
            {"prompt": "w", "chosen": talk("v", "c"), "rejected": talk("v", "r")},
            "prompt is in none of the turns of chosen",
        ),
        (
            {"prompt": "p", "chosen": str(said(("user", "u"))), "rejected": str(said(("user", "v")))},
            "lists of messages written as text",
        ),
        (dialogues("a", "b"), "the prompts of chosen and rejected differ"),
        ({**dialogues("a", "a"), "rejected": "y"}, "rejected is no whole dialogue"),
        ({"chosen": "the same start, c", "rejected": "the same start, r"}, "prompt is missing"),
        ({**dialogues("a", "a"), "prompt": "how?"}, "prompt is not the prompt of the dialogue in chosen"),
    ],
)
def test_records_that_are_refused(record: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecordError, match=problem):
        pair(record)


def test_one_list_of_messages_as_text_is_a_text() -> None:
    written = str(talk("u", "c"))
    assert read({"prompt": "p", "chosen": written, "rejected": "r"})[1] == written


# Human/Assistant transcripts


def test_whole_dialogues_share_their_prompt() -> None:
    start = "\n\nHuman: hi\n\nAssistant: ho\n\nHuman: what?\n\nAssistant:"
    record = {"chosen": start + " that", "rejected": start + " this"}
    assert read(record) == ((U("hi"), A("ho"), U("what?")), "that", "this")
    assert decision(record) == "conversational, implicit prompt"


def test_the_prompt_ends_at_the_last_marker_that_both_sides_share() -> None:
    start = "\n\nHuman: hi\n\nAssistant:"
    # cutting each side at its own last marker would give prompts that differ
    record = {"chosen": start + " I said\n\nAssistant: no", "rejected": start + " I say yes"}
    assert read(record) == ((U("hi"),), "I said\n\nAssistant: no", "I say yes")
    both = {"chosen": start + " a\n\nAssistant: b", "rejected": start + " a\n\nAssistant: c"}
    assert read(both) == ((U("hi"), A("a")), "b", "c")
    literal = {"chosen": start + " Human: quoted", "rejected": start + " x"}
    assert read(literal) == ((U("hi"),), "Human: quoted", "x")
    empty = {"chosen": start, "rejected": start + " x"}
    with pytest.raises(NoSignalError, match="empty response"):
        pair(empty)


@pytest.mark.parametrize(
    ("chosen", "rejected", "told"),
    [
        (" x\n\nHuman: q\n\nAssistant: c", " y\n\nHuman: q\n\nAssistant: r", 1),
        (" x\n\nHuman: thanks", " y", 1),
        (" x Human: quoted", " y\nHuman: quoted", 0),
        (" x\n\nHuman: q\n\nAssistant: c", " x\n\nHuman: q\n\nAssistant: r", 0),
    ],
)
def test_dialogues_that_part_before_their_last_answer_are_counted(chosen: str, rejected: str, told: int) -> None:
    start = "\n\nHuman: hi\n\nAssistant:"
    record = {"chosen": start + chosen, "rejected": start + rejected}
    warnings: Counter[RecordNote] = Counter()
    to_pair(record, detect([record], {}, "prefs.jsonl"), "prefs.jsonl:1", warnings)
    assert warnings.total() == told


def test_a_dialogue_as_prompt_becomes_turns() -> None:
    prompt = "\n\nHuman: hi\n\nAssistant: ho\n\nHuman: what?\n\nAssistant:"
    wanted = ((U("hi"), A("ho"), U("what?")), "c", "r")
    assert read({"prompt": prompt, "chosen": " c", "rejected": " r"}) == wanted
    assert read({"prompt": prompt, "chosen": prompt + " c", "rejected": prompt + " r"}) == wanted
    assert read({"prompt": "what?", "chosen": prompt + " c", "rejected": prompt + " r"}) == wanted


def test_text_that_only_mentions_the_names_stays_text() -> None:
    for prompt in (
        "Human: translate this",
        "Write a play.\n\nHuman: hi\n\nAssistant:",
        "Assistant:",
        "Human: a\nAssistant:",
    ):
        assert read({"prompt": prompt, "chosen": "c", "rejected": "r"})[0] == prompt


@given(
    st.lists(st.sampled_from(["user", "assistant"]), max_size=4),
    st.lists(st.text(alphabet="aH:\n é", max_size=12), min_size=5, max_size=5),
    st.booleans(),
)
def test_a_transcript_reads_back(roles: list[str], texts: list[str], with_system: bool) -> None:
    texts = [text.replace("\n\n", "\n").strip("\n") for text in texts]
    turns = [Message("user", "first"), *(Message(r, t) for r, t in zip(roles, texts, strict=False))]
    turns = [Message("system", "rules"), *turns] if with_system else turns
    assert transcript_turns(as_transcript(turns)) == turns
    assert transcript_turns("\n\n" + as_transcript(turns)) == turns


@given(st.text(alphabet="ab \n", max_size=30), st.text(alphabet="ab \n", max_size=30))
def test_responses_of_transcripts_are_kept_to_the_letter(chosen: str, rejected: str) -> None:
    start = "\n\nHuman: q\n\nAssistant: "
    assert split_transcripts(start + chosen, start + rejected) == ([U("q")], chosen, rejected)


# Order by scores, labels, mappings


@pytest.mark.parametrize(
    ("fields", "tied"),
    [
        (
            {"output_1": "bad", "output_2": "good", "output_1_score": 0.5, "output_2_score": 0.75},
            {"output_1_score": 0.75},
        ),
        ({"completions": ["bad", "good"], "scores": [1, 2]}, {"scores": [1, 1]}),
    ],
)
def test_scores_order_two_responses(fields: dict[str, Any], tied: dict[str, Any]) -> None:
    record = {"prompt": "p", **fields}
    assert read(record) == ("p", "good", "bad")
    assert "the higher score of" in decision(record)
    with pytest.raises(NoSignalError, match="tied scores"):
        pair(record | tied)


def test_a_mapping_says_which_column_is_what() -> None:
    record = {"input": "p", "output_1": "one", "output_2": "two", "label": 2}
    columns = {"prompt": "input", "chosen": "output_1", "rejected": "output_2", "label": "label"}
    assert read(record, **columns) == ("p", "two", "one")
    for label in (1, "1", "output_1", "first"):
        assert read({**record, "label": label}, **columns) == ("p", "one", "two")
    with pytest.raises(RecordError, match="label: expected"):
        pair({**record, "label": [1]}, **columns)
    for label in (None, ""):
        with pytest.raises(NoSignalError, match="no label"):
            pair({**record, "label": label}, **columns)
    for label in (0, 3, True, "the third"):
        with pytest.raises(UserError, match="'label', whose meaning is not certain"):
            pair({**record, "label": label}, **columns)
    with pytest.raises(NoSignalError, match="tied label"):
        to_pair({**record, "label": "tie"}, detect([record], columns, "prefs"), "prefs:2", Counter())


def test_a_mapping_reaches_into_objects() -> None:
    record = {"q": {"text": "p"}, "a": {"good": "c", "bad": "r"}, "sys": "s"}
    columns = {"prompt": "q.text", "chosen": "a.good", "rejected": "a.bad", "system": "sys"}
    assert read(record, **columns) == ((S("s"), U("p")), "c", "r")


def test_a_mapping_of_responses_alone_finds_the_prompt() -> None:
    assert read({"prompt": "p", "a": "c", "b": "r"}, chosen="a", rejected="b") == ("p", "c", "r")


def test_the_layout_is_that_of_most_of_the_first_records() -> None:
    whole, odd = {"prompt": "p", "chosen": "c", "rejected": "r"}, {"question": "q", "chosen": "c", "rejected": "r"}
    layout = detect([odd, whole, whole], {}, "prefs")
    assert layout.prompt == "prompt"
    with pytest.raises(RecordError, match="prompt is missing"):
        to_pair(odd, layout, "prefs:1", Counter())


# Anything at all

FIELDS = (
    "prompt chosen rejected conversations messages input instruction label system tools history role content from "
    "value score_chosen score_rejected responses scores metadata preferred_output non_preferred_output output_1 "
    "output_2 score_1 score_2 type text tool_calls function name arguments chosen_messages rejected_messages "
    "response_a response_b winner winner_a winner_b score_a score_b rank_a rank_b model_a model_b completions "
    "overall_score better_response_id response_0 response_1"
)
NAMES = st.sampled_from(FIELDS.split())
TEXTS = st.sampled_from(
    ["", " ", "a", "user", "assistant", "gpt", "text", "Human:", "\0", "\n\nHuman: a\n\nAssistant: b"]
)
LEAVES = st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | TEXTS | st.text(max_size=5)
ANY_VALUE = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=15
)
ANY_RECORD = st.dictionaries(NAMES | st.text(max_size=3), ANY_VALUE, max_size=6)
NEUTRAL = st.fixed_dictionaries(
    {"prompt": st.just("p"), "response_a": ANY_VALUE, "response_b": ANY_VALUE, "winner": LEAVES | st.just("A")},
    optional={"score_a": LEAVES, "score_b": LEAVES, "winner_a": LEAVES, "winner_b": LEAVES, "model_a": LEAVES},
)
SIDES = st.fixed_dictionaries(
    {"chosen": ANY_VALUE, "rejected": ANY_VALUE}, optional={"prompt": ANY_VALUE, "tools": ANY_VALUE}
)


MAPPINGS = st.dictionaries(NAMES, NAMES, max_size=3) | st.fixed_dictionaries(
    {},
    optional={
        "prompt": NAMES,
        "answers": st.lists(NAMES, min_size=2, max_size=3) | NAMES,
        "label": st.lists(NAMES, min_size=2, max_size=3) | NAMES,
        "scores": st.lists(NAMES, min_size=2, max_size=3) | NAMES,
        "rank": NAMES,
        "best": st.just("lowest"),
    },
)
MEANINGS = st.just({}) | st.just({"first": [0, "A", True], "second": {"above": 0}, "tie": [None]})


@given(st.lists(ANY_RECORD | SIDES | NEUTRAL, min_size=1, max_size=3), MAPPINGS, MEANINGS)
def test_no_record_does_more_than_be_refused(
    records: list[dict[str, Any]], columns: dict[str, Any], labels: dict[str, Any]
) -> None:
    try:
        layout = detect(records, columns, "any", labels)
    except UserError:
        return
    assert layout.described()
    for record in records:
        try:
            found = to_pair(record, layout, "any:1", Counter())
        except (RecordError, NoSignalError):
            continue
        assert found.chosen.strip()
        assert found.rejected.strip()
        assert found.chosen != found.rejected
        assert any(turn.content.strip() for turn in prompt_messages(found.prompt))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"outputs": True}, "outputs: expected a list of two responses or more, got true or false"),
        ({"outputs": ["a"]}, "outputs: expected a list of two responses or more, got a list of 1"),
        ({"scores": 3}, "scores: expected a list of scores"),
        ({"scores": [3]}, r"scores: expected a list of 2 scores, got 1"),
    ],
)
def test_a_record_without_the_lists_of_the_others_is_refused(change: dict[str, Any], problem: str) -> None:
    whole = {"prompt": "p", "outputs": ["a", "b"], "scores": [1, 2]}
    layout = detect([whole, whole, whole | change], {}, "any")
    assert (layout.responses, layout.scores) == (("outputs",), ("scores",))
    with pytest.raises(RecordError, match=problem):
        to_pair(whole | change, layout, "any:3", Counter())
