"""What is not certain is not read, and no line that is printed for pasting makes an order out of a place."""

from pathlib import Path
from typing import Any

import pytest

from simpo_cli.data.formats import detect
from simpo_cli.data.load import PairReader
from simpo_cli.recipe.schema import DataSource
from tests.data.pair_files import Write, load_pairs
from tests.data.test_direction import AB, ONE, REVERSED, RIGHT, Record, judged, lines, orders, refusal, scored

ZERO = ("response_0", "response_1")


# Names that may say something else than what is better


@pytest.mark.parametrize(
    "word",
    [
        "hallucination", "bias", "refusal", "severity", "negative", "difficulty", "detection", "length", "verbosity",
        "unsafe", "copy", "offensiveness", "uncertainty",
    ],
)  # fmt: skip
def test_a_score_of_something_unknown_may_be_better_the_lower_it_is(word: str, tmp_path: Path) -> None:
    for name in (f"{word}_score", f"{word}_rating"):
        error = refusal(scored(AB, (f"{name}_a", f"{name}_b"), 1, 5))
        assert [orders(scored(AB, (f"{name}_a", f"{name}_b"), 1, 5), **line) for line in lines(error, tmp_path)] == [
            RIGHT,
            REVERSED,
        ]
        inside = [{"prompt": "p", "candidates": [{"text": "bad", name: 5}, {"text": "good", name: 1}]}]
        assert "not certain" in refusal(inside).problem


@pytest.mark.parametrize("word", ["overall", "helpfulness", "gpt4", "human", "reward_model", "avg", "fine-grained"])
def test_a_score_of_quality_is_better_the_higher_it_is(word: str) -> None:
    assert orders(scored(AB, (f"{word}_score_a", f"{word}_score_b"), 5, 1)) == RIGHT


@pytest.mark.parametrize(
    "name",
    [
        "unsafe_choice", "wrong_choice", "toxic_label", "inferior_selection", "eliminated_choice", "random_choice",
        "longer_label", "shown_first_choice",
    ],
)  # fmt: skip
def test_a_label_of_something_else_is_not_certain(name: str, tmp_path: Path) -> None:
    records = judged(AB, name, "B", "A")
    error = refusal(records)
    assert "not certain" in error.problem
    assert RIGHT in [orders(records, **line) for line in lines(error, tmp_path)]


@pytest.mark.parametrize("name", ["longer", "human", "discarded", "shown_first"])
def test_a_field_that_only_names_the_responses_gets_both_lines(name: str, tmp_path: Path) -> None:
    records = judged(AB, name, "A", "B")
    error = refusal(records)
    assert "perhaps told" in error.problem
    assert [orders(records, **line) for line in lines(error, tmp_path)] == [RIGHT, REVERSED]


def test_columns_of_the_one_that_was_not_preferred_are_no_winners() -> None:
    records = [{"prompt": "p", AB[0]: "bad", AB[1]: "good", "not_preferred_a": 1, "not_preferred_b": 0}]
    assert "not certain" in refusal(records).problem


@pytest.mark.parametrize("name", ["loser", "rejected_response_id", "worse_id", "wrong_choice"])
def test_a_label_of_the_worse_one_needs_its_meaning_also_where_it_is_named(name: str, tmp_path: Path) -> None:
    records = judged(ZERO, name, 1, 0)
    error = refusal(records, columns={"answers": list(ZERO), "label": name})
    assert [orders(records, **line) for line in lines(error, tmp_path)] == [REVERSED, RIGHT]


def test_a_copy_of_the_worse_response_is_called_so() -> None:
    records = [{"prompt": "p", AB[0]: "good", AB[1]: "bad", "loser": "bad"}]
    error = refusal(records)
    assert "the other one once more under loser" in error.problem
    assert "the other one into a field chosen" in error.fix
    records = [{"prompt": "p", AB[0]: "good", AB[1]: "bad", "winner": "good"}]
    error = refusal(records, columns={"label": "winner"})
    assert "the preferred one once more under winner" in error.problem


# Lines to paste


@pytest.mark.parametrize(
    "more",
    [
        {"less_harmful_id": 1},
        {"response_b_wins": True},
        {"share_for_a": 0.2},
        {"annotator_1": "A", "annotator_2": "B"},
        {"note": '{"winner": "B"}'},
        {"scores": [3, 4]},
        {"judged": {"a": {"score": 3}, "b": {"score": 4}}},
    ],
)
@pytest.mark.parametrize("is_list", [False, True])
def test_no_line_orders_by_place_where_a_field_may_say_the_order(more: Record, is_list: bool, tmp_path: Path) -> None:
    sides = {"replies": ["bad", "good"]} if is_list else {AB[0]: "bad", AB[1]: "good"}
    records = [{"prompt": "p", **sides, **more}] * 2
    if is_list and "scores" in more:
        assert orders(records) == RIGHT
        return
    error = refusal(records)
    assert next(iter(more)) in error.problem
    for line in lines(error, tmp_path):
        assert "no record has that field" in refusal(records, **line).problem


@pytest.mark.parametrize("more", [{"id": 7, "source": "s"}, {"question_id": 3, "lang": "en"}])
def test_where_a_record_comes_from_orders_nothing(more: Record, tmp_path: Path) -> None:
    records = [{"prompt": "p", AB[0]: "good", AB[1]: "bad", **more}]
    assert [orders(records, **line) for line in lines(refusal(records), tmp_path)] == [RIGHT, REVERSED]


def test_values_that_cannot_be_paired_are_left_to_the_person(tmp_path: Path) -> None:
    values = ["Strongly prefer A", "Slightly prefer B", "Strongly prefer B"]
    records = [{"prompt": "p", AB[0]: "x", AB[1]: "y", "preference": value} for value in values]
    (line,) = lines(refusal(records), tmp_path)
    with pytest.raises(Exception, match="given no meaning"):
        orders(records, **line)


def test_a_text_that_is_always_the_same_is_no_label() -> None:
    records = [{"prompt": "p", "responses": ["x", "y"], "preference": "readability"}] * 3
    assert "no field that is known (others are preference)" in refusal(records).problem


def test_what_one_response_says_of_itself_orders_none() -> None:
    records = [{"prompt": "p", "answers": [{"text": "x", "is_best": False}, {"text": "y", "is_best": False}]}]
    assert "no field that is known (others are answers.is_best)" in refusal(records).problem


def test_a_number_beside_a_list_of_three_is_not_put_into_a_line() -> None:
    records = [{"prompt": "p", "responses": ["x", "y", "z"], "best": place} for place in (0, 2)]
    assert "orders two of them only" in refusal(records).problem


# Responses that are named in another order


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


@pytest.mark.parametrize(("label", "first", "second"), [("winner", "left", "right"), ("choice", 0, 1), ("best", 1, 2)])
def test_words_and_numbers_are_not_certain_over_an_order_of_the_person(label: str, first: Any, second: Any) -> None:
    columns = {"answers": [*reversed(AB)], "label": label}
    assert "not certain" in refusal(judged(AB, label, first, second), columns=columns).problem


def test_winner_columns_and_scores_follow_the_names_of_the_responses() -> None:
    won = [{"prompt": "p", AB[0]: "bad", AB[1]: "good", "a_wins": 0, "b_wins": 1, "score_a": 1, "score_b": 2}]
    answers = {"answers": [*reversed(AB)]}
    assert orders(won, columns=answers) == RIGHT
    for part, fields in (("label", ["a_wins", "b_wins"]), ("scores", ["score_a", "score_b"])):
        assert orders(won, columns=answers | {part: fields[::-1]}) == RIGHT
        assert "in another order" in refusal(won, columns=answers | {part: fields}).problem
    webgpt = [{"question": {"full_text": "p"}, "answer_0": "bad", "answer_1": "good", "score_0": -1, "score_1": 1}]
    assert orders(webgpt, columns={"answers": ["answer_1", "answer_0"]}) == RIGHT


# Mappings


def test_a_field_plays_one_part() -> None:
    with pytest.raises(ValueError, match=r"columns\.answers is 'x', which is columns\.prompt as well"):
        DataSource(path="x.jsonl", columns={"prompt": "x", "answers": ["x", "y"], "label": "z"})


def test_scores_that_are_named_beside_a_label_are_compared_with_it(write: Write) -> None:
    path = write("prefs.jsonl", [{"prompt": "p", "x": "good", "y": "bad", "won": 0, "s": 1, "t": 2}])
    columns = {"answers": ["x", "y"], "label": "won", "scores": ["s", "t"]}
    source = DataSource(path=str(path), columns=columns, labels={"first": [0], "second": [1]})
    reader = PairReader([source], role="train")
    assert [(pair.chosen, pair.rejected) for pair in reader] == [("good", "bad")]
    assert dict(reader.warnings.counts) == {"scores order the pair against its label": 1}
    assert reader.remarks == ["won: 0 means x"]


# Layouts


@pytest.mark.parametrize("sides", [("accepted", "rejected"), ("preferred", "rejected")])
def test_names_of_sides_that_share_one_with_the_usual_ones(sides: tuple[str, str]) -> None:
    assert orders([{"input": "p", sides[0]: "good", sides[1]: "bad"}]) == RIGHT


def test_lists_of_raw_generations_are_no_second_answers() -> None:
    record = {"input": "p", "raw_generation_responses": ["1", "2"], "generations": ["bad", "good"], "rating": [1, 2]}
    assert orders([record]) == RIGHT


def test_an_image_in_an_object_is_refused_as_a_list_of_them_is() -> None:
    record = {"question": "p", "image": {"bytes": "00", "path": "x.png"}, "chosen": "good", "rejected": "bad"}
    with pytest.raises(Exception, match="image: the record is about more than its texts"):
        orders([record])


# Records behind the sample


@pytest.mark.parametrize("filled", [None, ""])
@pytest.mark.parametrize("name", ["context", "system_prompt"])
def test_a_field_that_only_a_late_record_fills_is_named(write: Write, name: str, filled: Any) -> None:
    records: list[Record] = [
        {"prompt": f"p{i}", "chosen": "good", "rejected": "bad", "system": "s"} for i in range(150)
    ]
    if filled is not None:
        records = [{**record, name: filled} for record in records]
    records[140][name] = "seen from the ground"
    reader = PairReader(str(write("late.jsonl", records)), role="train")
    assert len(list(reader)) == 150
    assert reader.remarks == [f"not used: {name}"]
    assert load_pairs(str(write("even.jsonl", records[:140])), role="train").decision
    assert detect(records[:100], {}, "late.jsonl").unused == ()
