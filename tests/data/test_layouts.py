"""The known layouts: each is read as it means, wherever the better answer stands; no direction is guessed."""

from pathlib import Path
from typing import Any

import pytest

from simpo_cli.data.formats import detect
from simpo_cli.data.formats.known import KNOWN, known_layout
from simpo_cli.data.pair import Message, prompt_messages
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataSource
from tests.data.layouts import BAD, GOOD, READ, REFUSED, Case, Q, Record, Refusal, talk
from tests.data.pair_files import LoadedPairs, load_pairs, write_pairs
from tests.data.test_direction import AB, ONE, REVERSED, RIGHT, ZERO, beside, judged, orders, refusal


def load(records: list[Record], folder: Path, **source: Any) -> LoadedPairs:
    return load_pairs([DataSource(path=write_pairs(folder, "prefs.json", records), **source)], role="train")


def readings(loaded: LoadedPairs) -> list[tuple[Any, ...]]:
    return [
        (*((turn.role, turn.content) for turn in prompt_messages(pair.prompt)), pair.chosen, pair.rejected, pair.tools)
        for pair in loaded.pairs
    ]


@pytest.mark.parametrize("case", READ, ids=lambda case: case.name)
def test_a_layout_is_read_as_it_means(case: Case, tmp_path: Path) -> None:
    loaded = load(case.records, tmp_path)
    assert readings(loaded) == case.pairs
    assert loaded.dropped == case.dropped
    if known_layout(case.records) is not None:  # one record is enough where the layout says what its values mean
        assert readings(load(case.records[:1], tmp_path)) == case.pairs[:1]


@pytest.mark.parametrize("refusal", REFUSED, ids=lambda refusal: refusal.name)
def test_what_tells_no_direction_is_refused_with_the_fix(refusal: Refusal, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(refusal.records, tmp_path)
    for words in refusal.says:
        assert words in str(error.value)


def test_each_entry_of_the_table_is_tried() -> None:
    """The table holds no layout that these cases lack, and each entry is the one that is taken for its case."""
    taken = [known_layout(case.records) for case in (*READ, *REFUSED)]
    assert [known.name for known in KNOWN if known not in taken] == []


def tree(*replies: tuple[str, int | None], role: str = "prompter") -> Record:
    answers = [{"text": text, "role": "assistant", "rank": rank, "replies": []} for text, rank in replies]
    return {"text": Q, "role": role, "replies": answers}


def test_a_tree_gives_a_pair_for_each_message_with_ranked_replies(tmp_path: Path) -> None:
    root = tree((BAD, 2), ("Fair.", 1), (GOOD, 0))
    root["replies"][2]["replies"] = [tree(("No.", 1), ("Yes.", 0))]
    loaded = load(
        [
            {"prompt": root},
            {"prompt": tree((GOOD, 0))},
            {"prompt": tree((GOOD, 0), (BAD, 0))},
            {"prompt": tree(("x", None))},
        ],
        tmp_path,
    )
    assert readings(loaded) == [
        (("user", Q), GOOD, BAD, None),
        (("user", Q), ("assistant", GOOD), ("user", Q), "Yes.", "No.", None),
    ]
    assert loaded.dropped == {"no ranked replies": 2, "tied scores": 1}
    assert loaded.records_read == len(loaded.pairs) + sum(loaded.dropped.values())


def test_max_pairs_ends_inside_a_tree(tmp_path: Path) -> None:
    root = tree((BAD, 2), (GOOD, 0))
    root["replies"][1]["replies"] = [tree(("No.", 1), ("Yes.", 0))]
    assert len(load([{"prompt": root}], tmp_path, max_pairs=1).pairs) == 1


def studio(selected: str, to_name: str, *, cancelled: bool = False) -> Record:
    result = {"type": "pairwise", "to_name": to_name, "value": {"selected": selected}}
    return {
        "annotations": [{"result": [result], "was_cancelled": cancelled}],
        "data": {"prompt": Q, "answer1": GOOD, "answer2": BAD},
    }


@pytest.mark.parametrize(
    ("selected", "to_name"),
    [("left", "answer1,answer2"), ("right", "answer2, answer1"), ("left", "t1,t2"), ("right", "t2,t1"), ("left", "")],
)
def test_left_and_right_follow_the_order_in_which_the_texts_were_shown(
    selected: str, to_name: str, tmp_path: Path
) -> None:
    other = {"left": "right", "right": "left"}[selected]
    read = readings(load([studio(selected, to_name), studio(other, to_name)], tmp_path))
    assert [(chosen, rejected) for _, chosen, rejected, _ in read] == [(GOOD, BAD), (BAD, GOOD)]


def test_a_cancelled_annotation_is_no_vote(tmp_path: Path) -> None:
    record = studio("left", "answer1,answer2")
    record["annotations"] += studio("right", "answer1,answer2", cancelled=True)["annotations"]
    assert [pair.chosen for pair in load([record], tmp_path).pairs] == [GOOD]
    record["annotations"][1]["was_cancelled"] = False
    with pytest.raises(UserError, match=r"annotations: the annotators do not agree \(answer1, answer2\)"):
        load([record], tmp_path)


def test_a_mapping_of_the_fields_as_the_file_has_them_is_followed(tmp_path: Path) -> None:
    columns = {
        "prompt": "data.prompt",
        "answers": ["data.answer1", "data.answer2"],
        "label": "annotations.0.result.0.value.selected",
    }
    loaded = load([studio("right", ""), studio("left", "")], tmp_path, columns=columns)
    assert [pair.chosen for pair in loaded.pairs] == [BAD, GOOD]


def arena(first: str, second: str) -> Record:
    return beside(AB, (first, second), prompt='["p", "q"]', winner_model_a=1, winner_model_b=0, winner_tie=0)


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"messages": talk(Q, GOOD), "rejected_response": None}, "rejected_response: expected text"),
        ({"messages": [], "rejected_response": BAD}, "messages: expected a list of objects"),
        (
            {"messages": talk(Q, "Hm."), "chosen_response": GOOD, "rejected_response": BAD},
            "messages does not end with chosen_response",
        ),
        ({"messages": talk(Q, GOOD), "rejected_response": 5}, r"content: expected text, got number"),
        ({**studio("left", ""), "data": []}, "data: expected an object, got list"),
        ({"contents": [{"parts": []}], "completions": [{"completion": "x", "score": 1}]}, "expected a turn with role"),
        ({"messages": [{"role": "assistant", "candidates": [{"preferenceLabel": "preferred"}]}]}, "two candidates"),
        ({"prompt": {"text": 5, "replies": []}}, "expected a message with text"),
        ({"prompt": {"text": "x", "role": "prompter", "replies": 3}}, "replies: expected a list, got number"),
        ({"prompt": tree((GOOD, 0)) | {"replies": ["x"]}}, "expected a message with text"),
        ({"fields": {}, "responses": {"q": []}, "status": "pending"}, "responses.q: expected a list of objects"),
        (arena('["x", "good"]', '["y", "bad"]'), "turns behind the prompt"),
        (arena('["x", "good"]', '["bad"]'), "1 answers to 2 turns"),
        (arena('["x", "good"]', "[null, 3]"), "expected a list of texts"),
    ],
)
def test_a_malformed_record_of_a_known_layout_is_refused(record: Record, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=problem):
        load([record], tmp_path)


@pytest.mark.parametrize(
    "turns",
    [
        {"messages": talk(Q, GOOD)},
        {"messages": [*talk(Q, GOOD)[:1], {"role": "assistant", "content": [{"type": "text", "text": GOOD}]}]},
        {"prompt": talk(Q, GOOD)[:1]},
    ],
)
def test_beside_a_chosen_response_messages_hold_it_and_a_prompt_does_not(turns: Record, tmp_path: Path) -> None:
    (pair,) = load([{**turns, "chosen_response": GOOD, "rejected_response": BAD}], tmp_path).pairs
    assert (prompt_messages(pair.prompt), pair.chosen, pair.rejected) == ((Message("user", Q),), GOOD, BAD)


def test_turns_of_the_arena_table_are_the_same_up_to_the_last(tmp_path: Path) -> None:
    (pair,) = load([arena('["x", "good"]', '["x", "bad"]')], tmp_path).pairs
    assert (pair.chosen, pair.rejected) == ("good", "bad")


# What the person says over a known layout


def test_a_mapping_over_a_known_layout() -> None:
    records = judged(ZERO, "better_response_id", 0, 1)
    records = [{**record, "safer_response_id": 1 - record["better_response_id"]} for record in records]
    assert orders(records, columns={"label": "safer_response_id"}) == REVERSED
    assert orders(records, labels={"first": [1], "second": [0]}) == REVERSED
    assert orders(records, columns={"system": "prompt"}) == RIGHT
    columns = {"chosen": ZERO[0], "rejected": ZERO[1]}
    assert "better_response_id (0 (1 x), 1 (1 x))" in refusal(records, columns=columns).problem
    assert orders(records, columns=columns, direction="first") == RIGHT | REVERSED


def test_sides_of_their_own_come_before_a_known_layout() -> None:
    record = beside(ZERO, ("bad", "good"), better_response_id=0, chosen="good", rejected="bad")
    assert detect([record], {}, "prefs").name == ""
    assert orders([record]) == RIGHT


@pytest.mark.parametrize(
    ("fields", "label", "first", "second", "prompt"),
    [
        (ZERO, "better_response_id", 0, 1, "prompt"),
        (("response_1", "response_2"), "preference_strength", -2, 1, "prompt"),
        (("human_ref_A", "human_ref_B"), "labels", 1, 0, "history"),
        (ONE, "preference", 1, 2, "instruction"),
        (("answer1", "answer2"), "cmp", "left", "right", "prompt"),
        (("orig_response_A", "orig_response_B"), "orig_preference", "A", "B", "orig_instruction"),
        (AB, "winner", "a", "b", "prompt"),
        (AB, "winner", "model_a", "model_b", "prompt"),
        (("left", "right"), "winner", "left", "right", "prompt"),
    ],
)
@pytest.mark.parametrize("with_label", [False, True])
def test_the_order_of_answers_reverses_nothing(
    fields: tuple[str, str], label: str, first: Any, second: Any, prompt: str, with_label: bool
) -> None:
    records = [{prompt: record.pop("prompt"), **record} for record in judged(fields, label, first, second)]
    more = {"label": label} if with_label else {}
    assert orders(records, columns={"answers": [*reversed(fields)], **more}) == RIGHT
    if with_label:
        assert orders(records, columns={"chosen": fields[1], "rejected": fields[0], **more}) == RIGHT
