"""What is not certain is refused, and each line that is printed for pasting reads the file in one of the two ways.

Records are those of test_direction: "good" is the better response, and no line makes an order out of a place.
"""

from collections.abc import Sequence
from typing import Any

import pytest

from simpo_cli.data.pair import RecordError
from simpo_cli.recipe.schema import DataSource
from tests.data.test_direction import (
    AB,
    BA,
    ONE,
    REVERSED,
    RIGHT,
    ZERO,
    Record,
    beside,
    judged,
    lines,
    orders,
    refusal,
    scored,
)

BOTH = [RIGHT, REVERSED]


def ways(records: Sequence[Record], problem: str, **said: Any) -> list[set[tuple[str, str]]]:
    """The pairs by each line of the refusal; `problem` is a piece of what it says."""
    error = refusal(records, **said)
    assert problem in error.problem
    return [orders(records, **line) for line in lines(error)]


# Nothing says the order


@pytest.mark.parametrize(
    "fields",
    [
        *(ZERO, ONE, AB, ("answer1", "answer2"), ("left", "right"), ("model_a", "model_b"), ("A", "B")),
        *(("responseA", "responseB"), ("first_reply", "second_reply")),
    ],
)
def test_neutral_names_have_no_order(fields: tuple[str, str]) -> None:
    records = [beside(fields, id=7, source="s", question_id=3, lang="en")]  # where a record comes from orders nothing
    assert ways(records, "told by no field") == BOTH
    assert "told by no field" in refusal(records, columns={"answers": list(fields)}).problem


def test_a_list_without_scores_has_no_order() -> None:
    assert ways([{"prompt": "p", "responses": ["good", "middling", "bad"]}], "told by no field") == [RIGHT]


@pytest.mark.parametrize("values", [(0, 1), (5, 7), (True, False), ("0", "1")])
def test_two_values_under_a_name_that_says_nothing_are_offered_as_a_label(values: tuple[Any, Any]) -> None:
    assert ways(judged(ONE, "pick", *values, topic="t", turns=1), "; pick may be a label: ") in (BOTH, BOTH[::-1])


@pytest.mark.parametrize("more", [{"pick": 1}, {"num_turns": 1}, {"is_response_1_safe": True}])
def test_what_counts_or_judges_one_response_is_not_offered_as_a_label(more: Record) -> None:
    (name,) = more
    records = judged(ONE, name, more[name], 2 if name == "num_turns" else more[name])
    assert "may be a label" not in refusal(records).problem


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"annotation": {"winner": 1}}, "told by 'annotation.winner'"),
        ({"helpfulness_a": 3, "helpfulness_b": 4}, "told by 'helpfulness_a and helpfulness_b'"),
        ({"tokens_a": 3, "tokens_b": 4, "is_a_safe": True, "is_b_safe": False}, "told by no field"),
        ({"loser": "b"}, "told by 'loser', whose meaning is not certain: b (1 x)"),
        ({"rejected": "response_b"}, "told by 'rejected', whose meaning is not certain"),
        ({"preferred_model": "m"}, "no field that is known (others are preferred_model)"),
        ({"notes": [{"winner": "a"}, {"winner": "b"}]}, "told by 'notes.0.winner', whose meaning is not certain"),
        ({"votes": [], "preference": ["a"]}, "told by 'preference.0', whose meaning is not certain"),
        ({"correct": 0}, "no field that is known (others are correct)"),
        ({"scores": [3, 4]}, "no field that is known (others are scores, scores.0)"),
        ({"chosen": "good"}, "the preferred one once more under chosen"),
        ({"loser": "bad"}, "the other one once more under loser"),
        ({"not_preferred_a": 1, "not_preferred_b": 0}, "not certain"),
        ({"response_c": "middling", "winner": "a"}, "a label, winner, which orders two of them only"),
        ({"answer_a": "x", "answer_b": "y"}, "may hold its responses in response_a and response_b or answer_a and"),
    ],
)
def test_what_may_say_the_order_is_named(more: Record, problem: str) -> None:
    assert problem in refusal([beside(**more)]).problem


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"responses": ["x", "y"], "preference": "readability"}, "no field that is known (others are preference)"),
        ({"responses": ["x", "y"], "best": "It says where swifts sleep, and why."}, "(others are best)"),  # a comment
        (
            {"answers": [{"text": "x", "is_best": False}, {"text": "y", "is_best": False}]},
            "no field that is known (others are answers.is_best)",
        ),
        ({"responses": ["x", "y", "z"], "best": 2}, "orders two of them only"),
        ({"responses": ["a", "b", "c"], "ranking": [2, 0, 1]}, "told by 'ranking'"),
        ({"responses": [{"text": "a", "rank": 0}, {"text": "b", "rank": 1}]}, "told by 'responses.rank'"),
    ],
)
def test_beside_a_list_of_responses(fields: Record, problem: str) -> None:
    error = refusal([{"prompt": "p", **fields}] * 2)
    assert problem in error.problem
    assert ("holds places of responses, the best one first" in error.fix) == ("ranking" in fields)


def test_a_copy_of_a_response_is_to_be_named_as_what_it_is() -> None:
    assert "the other one into a field chosen" in refusal([beside(loser="bad")]).fix
    error = refusal([beside(winner="good")], columns={"label": "winner"})
    assert "the preferred one once more under winner" in error.problem


# A label or a score without a certain meaning

OF_SOMETHING_ELSE = (
    "unsafe_choice wrong_choice toxic_label inferior_selection eliminated_choice random_choice longer_label "
    "shown_first_choice"
)
LOWEST_MAY_BE_BEST = (
    "toxicity loss perplexity error distance penalty toxicity_score hallucination_score bias_score refusal_rating "
    "severity_rating negative_rating difficulty_score detection_score length_score verbosity_score unsafe_rating "
    "copy_score offensiveness_score uncertainty_rating"
)


@pytest.mark.parametrize(
    ("fields", "label", "first", "second"),
    [
        (AB, "label", 0, 1),  # 1 may mean "a is better"
        (AB, "label", 1, 0),
        (AB, "label", 1, 2),
        (ONE, "label", 0, 1),
        (ZERO, "label", 1, 2),
        (ZERO, "label", True, False),
        (AB, "is_better", True, False),
        (AB, "winner", "gpt-4", "claude"),
        (ONE, "winner", "A", "B"),
        (AB, "label", 1, -1),
        (AB, "preference", -2, 2),
        (AB, "choice", 1, 2),
        (AB, "vote", "yes", "no"),
        (AB, "label", "0", "1"),
        (AB, "loser", "b", "a"),
        (AB, "worse_response", "response_b", "response_a"),
        (AB, "margin", 0.5, -0.25),
        *((AB, name, "B", "A") for name in OF_SOMETHING_ELSE.split()),
    ],
)
def test_labels_without_a_certain_meaning(fields: tuple[str, str], label: str, first: Any, second: Any) -> None:
    found = ways(judged(fields, label, first, second), f"told by {label!r}, whose meaning is not certain")
    assert found in (BOTH, BOTH[::-1])


@pytest.mark.parametrize("fields", [ZERO, ONE, AB])
@pytest.mark.parametrize("value", [0, 1])
def test_a_number_that_is_always_the_same_decides_nothing(fields: tuple[str, str], value: int) -> None:
    assert ways([beside(fields, label=value)] * 3, f"{value} (3 x)") == BOTH


@pytest.mark.parametrize(
    ("sides", "values"), [(("answer1", "answer2"), ("left", "right")), (AB, ("a", "b")), (ONE, (1, 2))]
)
@pytest.mark.parametrize("name", ["pw", "outcome", "longer", "human", "discarded", "shown_first"])
def test_a_field_that_only_names_the_responses_gets_both_lines(
    name: str, sides: tuple[str, str], values: tuple[Any, Any]
) -> None:
    records = judged(sides, name, *values)
    assert ways(records, f"perhaps told by {name!r}") == BOTH
    stated = {"chosen": sides[0], "rejected": sides[1]}
    assert f"{name} ({values[0]} (1 x)" in refusal(records, columns=stated).problem


@pytest.mark.parametrize("name", ["loser", "rejected_response_id", "worse_id", "wrong_choice"])
def test_a_label_of_the_worse_one_needs_its_meaning_also_where_it_is_named(name: str) -> None:
    columns = {"answers": list(ZERO), "label": name}
    assert ways(judged(ZERO, name, 1, 0), "not certain", columns=columns) == BOTH[::-1]


@pytest.mark.parametrize(("label", "first", "second"), [("winner", "left", "right"), ("choice", 0, 1), ("best", 1, 2)])
def test_words_and_numbers_are_not_certain_over_an_order_of_the_person(label: str, first: Any, second: Any) -> None:
    columns = {"answers": list(BA), "label": label}
    assert "not certain" in refusal(judged(AB, label, first, second), columns=columns).problem
    columns = {"chosen": ONE[1], "rejected": ONE[0], "label": "label"}
    assert "not certain" in refusal(judged(ONE, "label", 1, 2), columns=columns).problem


@pytest.mark.parametrize("word", LOWEST_MAY_BE_BEST.split())
def test_a_score_whose_lowest_may_be_best(word: str) -> None:
    records = scored(AB, (f"{word}_a", f"{word}_b"), 0.1, 0.9)
    assert ways(records, "not certain") == BOTH
    inside = [{"prompt": "p", "candidates": [{"text": "bad", word: 5}, {"text": "good", word: 1}]}]
    assert ways(inside, "not certain") == BOTH
    columns = {"scores": [f"{word}_a", f"{word}_b"]}
    assert lines(refusal(records, columns=columns)) == lines(refusal(records))


def test_ranks_need_to_say_which_is_best() -> None:
    assert ways(scored(AB, ("rank_a", "rank_b"), 1, 2), "not certain") == BOTH


@pytest.mark.parametrize(
    ("values", "meanings"),
    [
        ([1, 5, 2, 4], [({"below": 3}, {"above": 3}), ({"above": 3}, {"below": 3})]),
        ([-0.5, 2.5], [({"below": 0}, {"above": 0}), ({"above": 0}, {"below": 0})]),
        ([0, 2, 1], [([0], [1], [2]), ([1], [0], [2]), ([1], [2], [0])]),
        (["x", "y", "tie"], [(["x"], ["y"], ["tie"]), (["y"], ["x"], ["tie"])]),
        (["A", "B", "unsure"], [(["A"], ["B"], ["unsure"])]),
        ([*range(20)], [({"below": 9.5}, {"above": 9.5}), ({"above": 9.5}, {"below": 9.5})]),
    ],
)
def test_the_lines_for_a_label_give_each_value_a_place(values: list[Any], meanings: list[tuple[Any, ...]]) -> None:
    records = [beside(texts=("x", "y"), preference=value) for value in values]
    pasted = lines(refusal(records))
    assert [line["labels"] for line in pasted] == [
        dict(zip(("first", "second", "tie"), meaning, strict=False)) for meaning in meanings
    ]
    for line in pasted:
        assert orders(records, **line) == {("x", "y"), ("y", "x")}


def test_values_that_cannot_be_paired_are_left_to_the_person() -> None:
    values = ["Strongly prefer A", "Slightly prefer B", "Strongly prefer B"]
    records = [beside(preference=value) for value in values]
    (line,) = lines(refusal(records))
    with pytest.raises(RecordError, match="given no meaning"):
        orders(records, **line)


@pytest.mark.parametrize(
    "more",
    [
        {"less_harmful_id": 1},
        {"response_b_wins": True},
        {"share_for_a": 0.2},
        {"annotator_1": "A", "annotator_2": "B"},
        {"note": '{"winner": "B"}'},
        {"grades": [3, 4]},
        {"judged": {"a": {"score": 3}, "b": {"score": 4}}},
    ],
)
@pytest.mark.parametrize("sides", [{"replies": ["bad", "good"]}, {AB[0]: "bad", AB[1]: "good"}])
def test_no_line_orders_by_place_where_a_field_may_say_the_order(more: Record, sides: Record) -> None:
    records = [{"prompt": "p", **sides, **more}] * 2
    error = refusal(records)
    assert next(iter(more)) in error.problem
    for line in lines(error):
        assert "no record has that field" in refusal(records, **line).problem


# Two things that say different orders


@pytest.mark.parametrize(
    "more",
    [
        [{"label": "a"}, {"label": "a"}],
        [{"score_a": 1, "score_b": 2}, {"score_a": 1, "score_b": 2}],
        [{"rank_a": 1, "rank_b": 2}, {"rank_a": 1, "rank_b": 2}],
        [{"label": 0}, {"label": 0.0}, {"label": 1}],
        [{"preferred": True}, {"preferred": True}, {"preferred": False}],
    ],
)
def test_two_things_that_say_different_orders(more: list[Record]) -> None:
    winners = judged(AB, "winner", "A", "B") * 2
    records = [{**one, **other} for one, other in zip(winners, more, strict=False)]
    assert ways(records, "both winner and")[0] == RIGHT


@pytest.mark.parametrize(
    "more",
    [
        {"label": 1},
        {"winner": "B"},
        {"better_response_id": 0},
        {"rank_a": 1, "rank_b": 2},
        {"score_a": 1, "score_b": 2},
    ],
)
def test_stated_sides_beside_a_field_that_would_order_them(more: Record) -> None:
    columns = {"chosen": AB[0], "rejected": AB[1]}
    assert ways([beside(**more)], " and ".join(more), columns=columns)[-1] == RIGHT
    assert orders([beside(**more)], columns=columns, direction="first") == RIGHT


def test_a_partial_mapping_keeps_the_order_by_scores() -> None:
    records = [{"user_prompt": one.pop("prompt"), **one} for one in scored(AB, ("score_a", "score_b"), 9, 2)]
    assert ways(records, "no field that is the prompt") == [RIGHT]
    assert orders(records, columns={"prompt": "user_prompt"}) == RIGHT
    sides = {"prompt": "user_prompt", "chosen": AB[0], "rejected": AB[1]}
    assert ways(records, "score_a and score_b may say which one", columns=sides) == [RIGHT, RIGHT | REVERSED]


def test_letters_that_may_be_either_are_refused() -> None:
    records = [{"prompt": "Which?", "A": "good", "B": "bad", "chosen": "A", "rejected": "B"}]
    assert ways(records, "holds letters or numbers under chosen and rejected") == [{("A", "B")}, RIGHT]


# Mappings


@pytest.mark.parametrize(
    ("columns", "said", "problem"),
    [
        ({"answers": [*AB], "chosen": AB[0]}, {}, "names both answers and chosen"),
        ({"label": "winner"}, {"direction": "first"}, "direction says"),
        ({"best": "lowest"}, {}, "names neither scores nor rank"),
        ({"answers": "prompt"}, {}, "is no list in any record"),
        ({"scores": ["n", "n", "n"]}, {}, "3 fields of scores and 2 responses"),
        ({"answers": ["response_a", "response_c"]}, {}, "'response_c', and no record has that field"),
        ({"answers": [*AB]}, {"labels": {"first": ["x"]}}, "columns does not name the label"),
        ({"answers": [*AB, "n"], "label": "winner"}, {}, "is a label, which is for two responses, and there are 3"),
        ({"prompt": AB[0]}, {}, "prompt is 'response_a', which is a response by its name"),
        ({"system": AB[1]}, {}, "system is 'response_b', which is a response by its name"),
    ],
)
def test_mappings_that_contradict_themselves(columns: Record, said: Record, problem: str) -> None:
    record = beside(n=1, **({"winner": "A"} if "label" in columns else {}))
    assert problem in refusal([record], columns=columns, **said).problem


@pytest.mark.parametrize(
    ("columns", "problem", "fix"),
    [
        ({"prompt": "inputs"}, "prompt is 'inputs', and no record has that field", "Did you mean input?"),
        ({"prompt": "input", "chosen": AB[0]}, "columns does not say what rejected is", "Add rejected: FIELD"),
    ],
)
def test_a_wrong_mapping(columns: Record, problem: str, fix: str) -> None:
    error = refusal([{"input": "p", **dict.fromkeys(AB, "x")}], columns=columns)
    assert problem in error.problem
    assert fix in error.fix


def test_a_field_plays_one_part() -> None:
    with pytest.raises(ValueError, match=r"columns\.answers is 'x', which is columns\.prompt as well"):
        DataSource(path="x.jsonl", columns={"prompt": "x", "answers": ["x", "y"], "label": "z"})


# No pairs, or fields that may be read in two ways


@pytest.mark.parametrize(
    ("record", "problem", "fix"),
    [
        ({"messages": [{"role": "user", "content": "u"}], "label": True}, "unpaired feedback (KTO)", "Join a good and"),
        ({"messages": [{"role": "user", "content": "u"}]}, "one response a record", "a chosen and a rejected"),
        ({"instruction": "i", "output": "o"}, "one response a record", "a chosen and a rejected"),
        (
            {"input": "p", "output_1": "a", "output_2": "b", "label": 1},
            "told by 'label', whose meaning is not certain",
            "columns: {prompt: input, answers: [output_1, output_2], label: label}, labels: {first: [1]}}]",
        ),
        ({"data": [{"prompt": "p"}]}, "holds its records under 'data'", "jq"),
        ({"a": 1, "b": 2}, "no fields chosen and rejected; its fields are a, b", "columns:"),
        ({}, "its fields are none", "columns:"),
        (
            {"question": "q", "query": "q", "chosen": "c", "rejected": "r"},
            "several fields that may be the prompt: question, query",
            "columns: {prompt: question",
        ),
        (
            beside(("chosen", "rejected"), chosen_response="c", rejected_response="r"),
            "both chosen / rejected and chosen_response / rejected_response",
            "columns: {prompt: prompt, chosen: chosen, rejected: rejected}",
        ),
    ],
)
def test_what_is_refused_says_why_and_what_to_do(record: Record, problem: str, fix: str) -> None:
    error = refusal([record])
    assert problem in error.problem
    assert fix in error.fix
    assert error.where == "prefs.jsonl"


@pytest.mark.parametrize(
    ("record", "better", "worse"),
    [
        ({"instruction": "Why?", "input": "", "output": "good", "rejected_output": "bad"}, "output", "rejected_output"),
        ({"prompt": "Why?", "completion": "good", "rejected": "bad"}, "completion", "rejected"),
        ({"question": "Why?", "answer": "good", "dispreferred_answer": "bad"}, "answer", "dispreferred_answer"),
    ],
)
def test_beside_a_response_that_is_named_the_worse_the_other_is_asked_for(
    record: Record, better: str, worse: str
) -> None:
    problem = f"has {worse} and no field that is the chosen response by its name; {better} may be meant"
    assert ways([record], problem) == [RIGHT]
    assert lines(refusal([record]))[0]["columns"] == {"chosen": better, "rejected": worse}


def test_a_mark_that_is_named_the_worse_is_no_response() -> None:
    with pytest.raises(RecordError, match="chosen is missing"):
        orders([{"prompt": "Why?", "output": "good", "rejected": True}])
