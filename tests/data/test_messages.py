"""Messages are kept whole, and what is no prompt with two answers is refused in plain words."""

import json
from collections import Counter
from typing import Any

import pytest

from simpo_cli.audit.clean import clean_record
from simpo_cli.data.formats import NoSignalError, detect, to_pair
from simpo_cli.data.messages import turn_of, turns_of
from simpo_cli.data.pair import Message, PreferencePair, RecordError, RecordNote

ASK = {"role": "user", "content": "Which key opens the shed?"}
YES, NO = {"role": "assistant", "content": "The brass one."}, {"role": "assistant", "content": "None."}
CALL = {"id": "k1", "type": "function", "function": {"name": "find_key", "arguments": {"door": "shed"}}}
UNNAMED = {"type": "function", "function": CALL["function"]}
AS_TEXT = '{"name": "find_key", "arguments": {"door": "shed"}}'


def pair(record: dict[str, Any], warnings: Counter[RecordNote] | None = None) -> PreferencePair:
    return to_pair(record, detect([record], {}, "f"), "f:1", Counter() if warnings is None else warnings)


def sided(chosen: Any = YES, rejected: Any = NO, **more: Any) -> dict[str, Any]:
    return {"prompt": [ASK], "chosen": [chosen], "rejected": [rejected], **more}


def refusal(record: dict[str, Any]) -> str:
    with pytest.raises(RecordError) as caught:
        pair(record)
    assert caught.value.fix
    return caught.value.problem


# What a message holds


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ({"content": None, "tool_calls": [CALL]}, {"content": None, "tool_calls": [CALL]}),
        ({"tool_calls": [CALL]}, {"tool_calls": [CALL]}),
        ({"content": "", "tool_calls": [CALL["function"]]}, {"content": "", "tool_calls": [UNNAMED]}),
        ({"content": None, "function_call": CALL["function"]}, {"content": None, "tool_calls": [UNNAMED]}),
        ({"role": "function_call", "content": AS_TEXT}, {"content": None, "tool_calls": [UNNAMED]}),
        ({"from": "tool_call", "value": f"[{AS_TEXT}]"}, {"content": None, "tool_calls": [UNNAMED]}),
    ],
)
def test_calls_in_every_dialect(message: dict[str, Any], fields: dict[str, Any]) -> None:
    turn = turn_of({"role": "assistant", **message} if "from" not in message else message, "m")
    assert turn.as_record() == {"role": "assistant", **fields}
    assert turn.content == AS_TEXT


def test_everything_else_that_a_message_holds_is_kept() -> None:
    result = {"role": "tool", "name": "find_key", "tool_call_id": "k1", "content": "brass", "weight": 1}
    assert turn_of(result, "m").as_record() == result
    thought = {"role": "assistant", "reasoning_content": "Brass, then.", "content": "The brass one."}
    assert turn_of(thought, "m").as_record() == thought
    assert turn_of(thought, "m").content == "Brass, then.\nThe brass one."
    empty = {**YES, "tool_calls": None, "name": None, "annotations": [], "audio": None}  # a column's nulls
    assert turn_of(empty, "m") == Message("assistant", "The brass one.")
    assert turn_of(empty, "m").fields == ""


def test_calls_belong_to_the_answer_in_front_of_them() -> None:
    turns = turns_of(
        [
            ASK,
            {"role": "assistant", "content": "Let me look."},
            {"role": "tool_call", "content": AS_TEXT},
            {"role": "tool_call", "content": AS_TEXT.replace("shed", "barn")},
            {"role": "tool_response", "content": "brass"},
            {"role": "function_call", "content": "no JSON"},
        ],
        "m",
    )
    assert [turn.role for turn in turns] == ["user", "assistant", "tool", "assistant"]
    calls = turns[1].as_record()["tool_calls"]
    assert [call["function"]["arguments"]["door"] for call in calls] == ["shed", "barn"]
    assert turns[1].as_record()["content"] == "Let me look."
    assert turns[3] == Message("assistant", "no JSON")


def test_answers_with_equal_texts_and_different_calls_are_two() -> None:
    barn = {**CALL, "function": {"name": "find_key", "arguments": {"door": "barn"}}}
    chosen, rejected = ({**YES, "tool_calls": [call]} for call in (CALL, barn))
    found = pair(sided(chosen, rejected))
    assert (found.chosen, found.rejected) == (f"The brass one.\n{AS_TEXT}", found.chosen.replace("shed", "barn"))
    pair(sided({**YES, "reasoning": "It is brass."}, YES))
    for more in ({}, {"tool_calls": [{**CALL, "id": "k2"}]}):  # nor does another id make another answer
        same = {**YES, **({"tool_calls": [CALL]} if more else {})}, {**YES, **more}
        with pytest.raises(NoSignalError, match="identical responses"):
            pair(sided(*same))


@pytest.mark.parametrize(
    "record",
    [
        sided({**YES, "tool_calls": [CALL]}, {**NO, "reasoning_content": "Lost."}),
        sided(chat_template_kwargs={"enable_thinking": False}),
        {**sided(), "prompt": [ASK, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "brass"}]},
    ],
)
def test_a_clean_record_holds_all_of_it(record: dict[str, Any]) -> None:
    first = pair(record)
    again = pair(clean_record(first, record))
    assert again == first
    assert (again.chosen_fields, again.rejected_fields) == (first.chosen_fields, first.rejected_fields)
    assert [turn.as_record() for turn in again.prompt] == [turn.as_record() for turn in first.prompt]  # type: ignore[union-attr]


# Other dialects


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ({"role": "user", "content": "Q"}, {"role": "ai", "content": "A"}),
        ({"type": "human", "content": "Q"}, {"type": "ai", "content": "A"}),
        ({"type": "human", "data": {"type": "human", "content": "Q"}}, {"type": "ai", "data": {"content": "A"}}),
        ({"role": "USER", "message": "Q"}, {"role": "CHATBOT", "message": "A"}),
        ({"role": "user", "content": [{"type": "text", "text": "Q", "image": None}]}, {"role": "model", "text": "A"}),
    ],
)
def test_roles_and_contents_under_other_names(asked: dict[str, Any], answered: dict[str, Any]) -> None:
    found = pair({"prompt": [asked], "chosen": [answered], "rejected": [NO]})
    assert (found.prompt, found.chosen) == ((Message("user", "Q"),), "A")
    assert pair({"prompt": asked, "chosen": answered, "rejected": NO}).prompt == found.prompt  # one message, no list


def test_an_answer_that_is_a_list_of_one_text() -> None:
    assert pair({"prompt": "Q", "chosen": ["A"], "rejected": ["B"]}) == PreferencePair("Q", "A", "B", "f:1")
    assert "a list of 2 texts" in refusal({"prompt": "Q", "chosen": ["A", "C"], "rejected": ["B", "D"]})


# Two of a kind


def test_two_questions_in_a_row_are_one_and_counted() -> None:
    warnings: Counter[RecordNote] = Counter()
    twice = [ASK, {"role": "user", "content": "Quick!"}]
    assert pair({**sided(), "prompt": twice}, warnings).prompt == (Message("user", f"{ASK['content']}\n\nQuick!"),)
    assert warnings == {"prompts with two turns of the user in a row, joined by an empty line": 1}
    named = [{**turn, "name": name} for turn, name in zip(twice, ("Ana", "Rui"), strict=True)]
    assert "that are more than texts" in refusal({**sided(), "prompt": named})


OPENING = {"role": "system", "content": "Be brief."}
OPENED = (Message("system", "Be brief."), Message("user", "Which key opens the shed?"))


def test_a_second_system_text_is_never_dropped() -> None:
    both = sided(system="Be brief. ", prompt=[OPENING, ASK])
    assert pair(both).prompt == OPENED
    assert "say different things" in refusal({**both, "system": "Answer in French."})
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    assert pair(sided(system=parts)).prompt == OPENED


def test_a_conversation_beside_its_last_question() -> None:
    record = {"prompt": ASK["content"], "messages": [OPENING, ASK], "chosen": YES, "rejected": NO}
    for messages in ([OPENING, ASK], [OPENING, ASK, YES]):
        assert pair({**record, "messages": messages}).prompt == OPENED
    assert "not the last question of messages" in refusal({**record, "prompt": "Something else?"})


# Answers of several turns

AGAIN = {"role": "user", "content": "And then?"}
USED = [{"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "brass"}, YES]


@pytest.mark.parametrize(
    ("record", "side"),
    [
        ({"prompt": [ASK], "chosen": [YES, AGAIN, YES], "rejected": [NO, AGAIN, NO]}, "chosen: 3 turns"),
        ({"prompt": "Q", "chosen": [YES, AGAIN, YES], "rejected": [NO]}, "chosen: 3 turns"),
        ({"prompt": [ASK], "chosen": USED, "rejected": [NO]}, "chosen: 3 turns behind the prompt (assistant, tool"),
        ({"chosen": [ASK, YES], "rejected": [ASK, *USED]}, "rejected: 3 turns"),
        ({"chosen": [ASK, YES, AGAIN, YES], "rejected": [ASK, NO, AGAIN, NO]}, "chosen: 3 turns"),
    ],
)
def test_an_answer_of_several_turns(record: dict[str, Any], side: str) -> None:
    assert side in refusal(record)


def test_turns_that_both_sides_share_belong_to_the_prompt() -> None:
    found = pair({"prompt": [ASK], "chosen": [ASK, *USED[:2], YES], "rejected": [ASK, *USED[:2], NO]})
    assert [turn.role for turn in found.prompt] == ["user", "assistant", "tool"]  # type: ignore[union-attr]
    assert (found.chosen, found.rejected) == ("The brass one.", "None.")


# Variables of the template


def test_variables_of_a_record() -> None:
    for value in ({"tone": "dry", "depth": None}, '{"tone": "dry"}'):
        found = pair(sided(chat_template_kwargs=value)).template_kwargs
        assert found is not None
        assert json.loads(found) == {"tone": "dry"}
    for value in (None, {}, "", {"tone": None}):
        assert pair(sided(chat_template_kwargs=value)).template_kwargs is None
    assert "the text is not JSON" in refusal(sided(chat_template_kwargs="{tone: dry}"))
    assert "expected an object, got list" in refusal(sided(chat_template_kwargs=[1]))
