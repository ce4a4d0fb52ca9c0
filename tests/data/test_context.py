"""No part of a conversation vanishes without a word: each field of a record is used, listed, or refused."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.data.formats import SAMPLE_RECORDS, detect, to_pair
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import Message, RecordError, RecordNote, prompt_messages
from simpo_cli.errors import UserError
from tests.data.layouts import BAD, GOOD, SYSTEM, TOOL, TOOLS, Q, Record, record_of, said, talk
from tests.data.test_layouts import load

SIDES = {"chosen": GOOD, "rejected": BAD}
PAIR = {"prompt": Q, **SIDES}


def unused(*records: Record) -> tuple[str, ...]:
    return detect(records, {}, "prefs.jsonl").unused


@pytest.mark.parametrize(
    ("record", "listed"),
    [
        (PAIR, ()),
        ({**PAIR, "context": "Swifts are birds."}, ("context",)),
        ({"instruction": Q, "context": "Swifts are birds.", **SIDES}, ("context",)),
        ({**PAIR, "messages": said(("system", SYSTEM), ("user", Q))}, ()),
        ({**PAIR, "chat_template_kwargs": {"enable_thinking": False}}, ()),
        ({**PAIR, "passage": "Swifts.", "hint": "Birds."}, ("passage", "hint")),
        ({**PAIR, "context": "", "passage": None, "documents": [], "label": None}, ()),
        ({**PAIR, "id": 1, "source": "web", "model_name": "m", "created_at": "2024", "language": "en"}, ()),
        ({**PAIR, "image_url": "https://example.org/a.png"}, ("image_url",)),
        (
            {**PAIR, "user_prompt": "u", "chosen_model": "m", "rejected_model": "n", "score_chosen": 1.0},
            ("user_prompt",),
        ),
        ({**PAIR, "label": 0}, ("label",)),
        ({"chosen": talk(Q, GOOD), "rejected": talk(Q, BAD), "history": [["Hello.", "Hi."]]}, ("history",)),
        # under a name of metadata too
        ({"prompt": Q, "question": Q, "chosen": talk(Q, GOOD), "rejected": talk(Q, BAD)}, ()),
        ({**PAIR, "turns": ["Hello.", "Hi."]}, ("turns",)),
        ({**PAIR, "turns": 2, "Unnamed: 0": 7, "__index_level_0__": 7}, ()),
        ({**PAIR, "meta": said(("user", "Hello."))}, ("meta",)),
        ({**PAIR, "metadata": {"system_prompt": SYSTEM, "id": 3, "tools": []}}, ("metadata.system_prompt",)),
        ({**PAIR, "source": "Swifts sleep on the wing, " * 5}, ("source",)),
        ({**PAIR, "source": "https://example.org/" + "a" * 90, "topic": "the swifts of the old town"}, ()),
        ({**PAIR, "response": GOOD}, ()),  # it repeats the chosen one
        ({"prompt": Q, "chosen": talk(Q, GOOD), "rejected": talk(Q, BAD)}, ()),  # it must be one of the turns
        (
            {"info": {"post": Q, "title": "Birds"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 1},
            ("info.title",),
        ),
        ({"messages": talk(Q, GOOD), "rejected_response": BAD, "context": "Swifts are birds."}, ("context",)),
        (record_of("UltraFeedback"), ("completions.principle", "completions.custom_system_prompt")),
        (
            {
                "input": {"messages": said(("user", Q)), "tools": [TOOL], "parallel_tool_calls": True},
                "preferred_output": said(("assistant", GOOD)),
                "non_preferred_output": said(("assistant", BAD)),
            },
            ("input.parallel_tool_calls",),
        ),
    ],
)
def test_what_is_neither_used_nor_metadata_is_listed(record: Record, listed: tuple[str, ...]) -> None:
    assert unused(record) == listed


VOTES = {"votes": [{"winner": "b", "why": "it is true"}], "prompt": Q, "response_a": BAD, "response_b": GOOD}


@pytest.mark.parametrize(
    ("columns", "record", "listed"),
    [
        ({"prompt": "question"}, {"question": Q, "prompt": "You are a pirate.", **SIDES}, ("prompt",)),
        ({"prompt": "question"}, {"question": Q, "prompt": Q, **SIDES}, ()),  # it repeats the question
        ({"prompt": "asked.text"}, {"asked": {"text": Q, "context": "Swifts."}, **SIDES}, ("asked.context",)),
        ({"prompt": "prompt.text"}, {"prompt": {"text": Q, "context": "Swifts."}, **SIDES}, ("prompt.context",)),
        ({"label": "votes.0.winner"}, VOTES, ("votes.why",)),
    ],
)
def test_what_is_beside_a_field_that_is_named_is_listed(
    columns: dict[str, Any], record: Record, listed: tuple[str, ...]
) -> None:
    assert detect([record], columns, "prefs.jsonl").unused == listed


def test_a_field_of_any_record_of_the_sample_is_listed() -> None:
    assert unused(PAIR, {**PAIR, "context": "Swifts are birds."}, {**PAIR, "note": "n"}) == ("context", "note")


def read(record: Record, **columns: Any) -> tuple[list[tuple[str, Any]], str | None]:
    layout = detect([record], columns, "prefs.jsonl")
    pair = to_pair(record, layout, "prefs.jsonl:1", Counter())
    return [(turn.role, turn.content) for turn in prompt_messages(pair.prompt)], pair.tools


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
def test_the_system_text_of_each_name_is_used(name: str) -> None:
    assert read({**PAIR, name: SYSTEM}) == ([("system", SYSTEM), ("user", Q)], None)
    assert unused({**PAIR, name: SYSTEM}) == ()


def test_of_several_system_texts_none_is_run_together_with_another() -> None:
    for name in ("system", "system_prompt"):
        assert read({**PAIR, name: [SYSTEM]})[0][0] == ("system", SYSTEM)
        with pytest.raises(RecordError, match=f"{name}: a list of 2 texts"):
            read({**PAIR, name: [SYSTEM, "Be kind."]})
    record = {**PAIR, "system_prompt": "Answer in French.", "system": SYSTEM}
    assert read(record)[0][0] == ("system", SYSTEM)
    assert unused(record) == ("system_prompt",)
    assert read(record, system="system_prompt")[0][0] == ("system", "Answer in French.")


@pytest.mark.parametrize(
    "record",
    [
        {**PAIR, "tools": [TOOL]},
        {**PAIR, "tools": TOOLS},
        {
            "input": {"messages": said(("user", Q)), "tools": [TOOL]},
            "preferred_output": said(("assistant", GOOD)),
            "non_preferred_output": said(("assistant", BAD)),
        },
    ],
)
def test_tools_are_used_wherever_they_stand(record: Record) -> None:
    assert read(record)[1] == TOOLS


@pytest.mark.parametrize("name", ["images", "videos", "audios", "rejected_images"])
def test_a_record_with_pictures_or_sound_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"record 2: {name}: .* only text can be trained on"):
        load([PAIR, {**PAIR, name: ["a.bin"]}], tmp_path)
    assert len(load([PAIR, {**PAIR, name: []}, {**PAIR, name: None}], tmp_path).pairs) == 3


@pytest.mark.parametrize("name", ["image", "video", "audio", "image_path"])
def test_one_picture_is_refused_where_the_text_points_at_it_and_listed_elsewhere(name: str, tmp_path: Path) -> None:
    kind = name.removesuffix("_path")
    assert unused({**PAIR, name: "a.bin"}) == (name,)
    with pytest.raises(UserError, match=f"{name}: .* only text can be trained on"):
        load([{**PAIR, "prompt": f"<{kind}>What is it?", name: "a.bin"}], tmp_path)
    assert len(load([{**PAIR, "prompt": f"What does <{kind}> mean in HTML?"}], tmp_path).pairs) == 1


def test_a_picture_itself_is_refused_wherever_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image: .* only text can be trained on"):
        load([{**PAIR, "image": {"bytes": "00", "path": "x.png"}}], tmp_path)


@pytest.mark.parametrize("prompt", [{"role": "user", "content": Q}, said(("user", Q)), Q])
def test_a_prompt_is_a_text_a_message_or_messages(prompt: Any) -> None:
    assert read({**PAIR, "prompt": prompt})[0] == [("user", Q)]


@pytest.mark.parametrize(
    "history", [[["Hello.", "Hi."]], '[["Hello.", "Hi."]]', said(("user", "Hello."), ("assistant", "Hi."))]
)
def test_history_is_pairs_of_texts_or_messages_or_their_json(history: Any) -> None:
    turns = [("user", "Hello."), ("assistant", "Hi."), ("user", Q)]
    opened = said(("system", SYSTEM), ("user", Q))
    assert read({**PAIR, "history": history, "prompt": opened})[0] == [("system", SYSTEM), *turns]
    assert read({**PAIR, "history": history, "prompt": said(*turns)})[0] == turns  # they are there already
    assert read({**PAIR, "history": history})[0] == turns


def test_history_must_end_with_an_answer_and_be_turns() -> None:
    for history, problem in ((said(("user", "Hello.")), "ends with a turn by user"), ("Hello.", "expected messages")):
        with pytest.raises(RecordError, match=problem):
            read({**PAIR, "history": history})


@pytest.mark.parametrize("side", [GOOD, said(("assistant", GOOD)), said(("assistant", GOOD))[0]])
def test_the_input_of_an_instruction_is_used_in_every_form_of_the_sides(side: Any) -> None:
    record = {
        "instruction": Q,
        "input": "In short.",
        "chosen": side,
        "rejected": json.loads(json.dumps(side).replace(GOOD, BAD)),
    }
    assert read(record)[0] == [("user", f"{Q}\nIn short.")]
    with pytest.raises(RecordError, match="input: cannot be joined to a prompt that is a conversation"):
        read({"turns": said(("user", Q)), "input": "x", **SIDES}, prompt="turns", input="input")


def test_the_line_that_names_the_prompt_keeps_what_was_said() -> None:
    columns = {"answers": ["response_a", "response_b"], "label": "mark"}
    record = {"asked": Q, "response_a": GOOD, "response_b": BAD, "mark": 1}
    with pytest.raises(UserError) as error:
        detect([record], columns, "prefs.jsonl", {"first": [1], "second": [0]})
    assert (
        "columns: {prompt: asked, answers: [response_a, response_b], label: mark}, labels: {first: [1], second: [0]}"
        in str(error.value)
    )


@pytest.mark.parametrize("name", ["Vertex AI", "Amazon Nova", "OASST tree"])
def test_what_stands_beside_a_layout_that_is_rewritten_is_used_or_listed(name: str, tmp_path: Path) -> None:
    record = record_of(name)
    assert unused(record) == ()
    assert unused({**record, "context": "Swifts are birds."}) == (*unused(record), "context")
    if name == "OASST tree":
        pairs = load([{**record, "system": SYSTEM}], tmp_path).pairs
        assert [turn.role for turn in prompt_messages(pairs[0].prompt)] == ["system", "user"]


def test_the_system_text_of_vertex_has_two_spellings_and_its_functions_are_refused(tmp_path: Path) -> None:
    record = record_of("Vertex AI")
    record["system_instruction"] = record.pop("systemInstruction")
    pairs = load([record], tmp_path).pairs
    assert prompt_messages(pairs[0].prompt)[0] == Message("system", SYSTEM)
    with pytest.raises(UserError, match="tools: the functions of Vertex AI"):
        load([{**record, "tools": [{"functionDeclarations": []}]}], tmp_path)


@pytest.mark.parametrize("before", [{}, {"passage": None, "system_prompt": ""}])
def test_a_field_that_only_a_late_record_fills_is_listed(before: Record, tmp_path: Path) -> None:
    records = [{"prompt": f"Question {i}?", **SIDES, **before} for i in range(2 * SAMPLE_RECORDS)]
    path = tmp_path / "prefs.jsonl"
    late = {**PAIR, "passage": "Swifts are birds.", "system_prompt": SYSTEM, "id": 1}
    path.write_text("".join(json.dumps(record) + "\n" for record in [*records, late]))
    reader = PairReader(str(path), role="train")
    assert len(list(reader)) == len(records) + 1
    assert reader.remarks == ["not used: passage, system_prompt"]


def test_of_keys_that_are_data_themselves_not_all_are_listed() -> None:
    assert len(unused(*({**PAIR, f"key{i} of it": "text"} for i in range(80)))) == 50


@pytest.mark.parametrize("tools", [[json.dumps(TOOL)], json.dumps([json.dumps(TOOL)])], ids=["list", "text"])
def test_tools_that_are_texts_in_a_list_are_parsed(tools: Any) -> None:
    found = read({**PAIR, "tools": tools})[1]
    assert found is not None
    assert json.loads(found) == [TOOL]


@pytest.mark.parametrize(
    ("tools", "problem"),
    [
        (["search"], r"tools\[0\]: the text is not JSON"),
        ([TOOL, 3], r"tools\[1\]: expected the definition of a tool, got number"),
        ('["search"]', r"tools\[0\]: the text is not JSON"),
        ([json.dumps(TOOL) + " x"], r"tools\[0\]: the text is not JSON"),
    ],
)
def test_names_of_tools_are_no_tools(tools: Any, problem: str) -> None:
    with pytest.raises(RecordError, match=problem):
        read({**PAIR, "tools": tools})


MORE = said(("system", SYSTEM), ("user", "Hello."), ("assistant", "Hi."), ("user", Q))


@pytest.mark.parametrize("sides", [SIDES, {side: said(("assistant", text)) for side, text in SIDES.items()}])
@pytest.mark.parametrize("answered", [False, True])
def test_the_longer_one_of_prompt_and_messages_is_the_prompt(sides: Record, answered: bool) -> None:
    whole = [*MORE, *said(("assistant", GOOD))] if answered else MORE
    turns = [(turn["role"], turn["content"]) for turn in MORE]
    assert read({"prompt": MORE[-1:], "messages": whole, **sides})[0] == turns
    assert read({"prompt": MORE, "messages": MORE[-1:], **sides})[0] == turns
    assert read({"prompt": MORE, "messages": MORE, **sides})[0] == turns
    with pytest.raises(RecordError, match="prompt is not the last question of messages"):
        read({"prompt": said(("user", "Another question?")), "messages": whole, **sides})


@pytest.mark.parametrize("name", ["input", "question", "instruction", "query"])
def test_messages_are_a_prompt_under_each_of_its_names(name: str) -> None:
    sides = {side: said(("assistant", text)) for side, text in SIDES.items()}
    assert read({name: MORE, **sides})[0] == [(turn["role"], turn["content"]) for turn in MORE]


def test_a_prompt_that_ends_with_an_answer_is_counted_and_an_empty_one_refused() -> None:
    warnings: Counter[RecordNote] = Counter()
    record = {**PAIR, "prompt": said(("user", Q), ("assistant", "Well,"))}
    to_pair(record, detect([record], {}, "prefs.jsonl"), "prefs.jsonl:1", warnings)
    assert warnings == {"prompts that end with an answer, which the responses follow as turns of their own": 1}
    with pytest.raises(RecordError, match="ends with an empty turn of the assistant"):
        read({**PAIR, "prompt": said(("user", Q), ("assistant", " "))})
