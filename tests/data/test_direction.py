"""Which response is preferred: read where something in the records says so, refused where nothing does for certain.

Every record is written so that the better response is "good" and the other one "bad": reading it right gives
("good", "bad") for every record, and a reversed reading the opposite.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.data.formats import NoSignalError, UnknownLabelError, detect, to_pair
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import RecordError
from simpo_cli.errors import UserError
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import DataSource
from tests.data.pair_files import Write, load_pairs

Record = dict[str, Any]
RIGHT, REVERSED = {("good", "bad")}, {("bad", "good")}


def text(value: Any) -> str:
    """The text of a response, which some files wrap into a message."""
    return value if isinstance(value, str) else str(value[-1]["content"])


def orders(records: Sequence[Record], **said: Any) -> set[tuple[str, str]]:
    """The pairs (chosen, rejected) that the records give; ties are left out."""
    columns = said.pop("columns", {})
    layout = detect(records, columns, "prefs.jsonl", **said)
    found = set()
    for record in records:
        for one in layout.rewritten(record):
            try:
                pair = to_pair(one, layout, "prefs.jsonl:1", Counter())
            except NoSignalError:
                continue
            found.add((text(pair.chosen), text(pair.rejected)))
    return found


def refusal(records: Sequence[Record], **said: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        orders(records, **said)
    return caught.value


def lines(error: UserError, folder: Path) -> list[Mapping[str, Any]]:
    """What the lines of a refusal say when they are pasted into a recipe."""
    found = []
    for line in re.findall(r"data\.train: (\[\{.*\}\])", error.fix):
        recipe = folder / "pasted.yaml"
        recipe.write_text(f"name: pasted\nmodel:\n  path: builtin:guide\ndata:\n  train: {line}\n", encoding="utf-8")
        train = compose(str(recipe)).recipe.data.train
        assert not isinstance(train, str)
        found.append({"columns": train[0].columns, "labels": train[0].labels, "direction": train[0].direction})
    return found


def judged(fields: tuple[str, str], label: str, first: Any, second: Any, count: int = 2, **more: Any) -> list[Record]:
    """Records of two responses and a label; `first` prefers the first field."""
    pairs = (("good", "bad", first), ("bad", "good", second))
    records = [{"prompt": "p", fields[0]: a, fields[1]: b, label: value, **more} for a, b, value in pairs]
    return records * (count // 2)


def scored(fields: tuple[str, str], scores: tuple[str, str], best: float, worst: float) -> list[Record]:
    return [
        {"prompt": "p", fields[0]: "good", fields[1]: "bad", scores[0]: best, scores[1]: worst},
        {"prompt": "p", fields[0]: "bad", fields[1]: "good", scores[0]: worst, scores[1]: best},
    ]


AB, ZERO, ONE = ("response_a", "response_b"), ("response_0", "response_1"), ("output_1", "output_2")

# Labels whose meaning their names give


@pytest.mark.parametrize(
    ("fields", "label", "first", "second"),
    [
        (AB, "preference", "a", "b"),
        (("response_A", "response_B"), "winner", "A", "B"),
        (AB, "winner", "B", "A"),
        (AB, "label", "response_a", "response_b"),
        (AB, "label", "Response A", "Response B"),
        (AB, "verdict", "[[A]]", "[[B]]"),
        (AB, "winner", "model_a", "model_b"),
        (AB, "preferred_model", "model_a", "model_b"),
        (ONE, "preference", "1.0", "2.0"),
        (("conversation_a", "conversation_b"), "winner", "model_a", "model_b"),
        (ONE, "winner", "model_a", "model_b"),
        (("answer1", "answer2"), "choice", "left", "right"),
        (("completionA", "completionB"), "better", "first", "second"),
        (("left_response", "right_response"), "label", "left", "right"),
        (("model_a_response", "model_b_response"), "winner", "a", "b"),
        (ONE, "preference", 1, 2),
        (ONE, "preference", "1", "2"),
        (ONE, "preference", 1.0, 2.0),
        (ONE, "label", "output_1", "output_2"),
        (ZERO, "label", 0, 1),
        (("answer_0", "answer_1"), "label", "0", "1"),
        (AB, "choice", 0, 1),
        (AB, "best_index", 0, 1),
        (AB, "better_response_id", 0, 1),
        (("response_1", "response_2"), "chosen_idx", 0, 1),
        (("text_first", "text_second"), "preferred", "first", "second"),
    ],
)
def test_labels_that_say_what_they_mean(fields: tuple[str, str], label: str, first: Any, second: Any) -> None:
    if (fields, first) == (AB, "B"):
        fields = (AB[1], AB[0])  # the order of the fields in the file decides nothing
    assert orders(judged(fields, label, first, second)) == RIGHT


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
    ],
)
def test_labels_without_a_certain_meaning(
    fields: tuple[str, str], label: str, first: Any, second: Any, tmp_path: Path
) -> None:
    records = judged(fields, label, first, second)
    error = refusal(records)
    assert f"told by {label!r}, whose meaning is not certain" in error.problem
    one, other = lines(error, tmp_path)
    assert [orders(records, **one), orders(records, **other)] in ([RIGHT, REVERSED], [REVERSED, RIGHT])


@pytest.mark.parametrize("fields", [ZERO, ONE, AB])
@pytest.mark.parametrize("value", [0, 1])
def test_a_number_that_is_always_the_same_decides_nothing(fields: tuple[str, str], value: int, tmp_path: Path) -> None:
    records = [{"prompt": "p", fields[0]: "good", fields[1]: "bad", "label": value}] * 3
    error = refusal(records)
    assert f"{value} (3 x)" in error.problem
    assert [orders(records, **line) for line in lines(error, tmp_path)] == [RIGHT, REVERSED]


@pytest.mark.parametrize(
    "tie", ["tie", "Tie", "both_bad", "tie (bothbad)", "equal", "Draw", "neither", "both", "same", "none", "both bad"]
)
def test_ties_in_many_words_are_counted(write: Write, tie: str) -> None:
    records = [*judged(AB, "winner", "A", "B"), {"prompt": "p", AB[0]: "x", AB[1]: "y", "winner": tie}]
    loaded = load_pairs(write("prefs.jsonl", records), role="train")
    assert loaded.dropped == {"tied label": 1}
    assert {(pair.chosen, pair.rejected) for pair in loaded.pairs} == RIGHT


# Values and meanings as the person gives them


@pytest.mark.parametrize(
    ("labels", "first", "second"),
    [
        ({"first": [1], "second": [0]}, 1, 0),
        ({"first": ["1"], "second": ["0"]}, 1, 0),  # as text where no value has that type
        ({"first": [1], "second": ["1"]}, 1, "1"),  # by type where both are there
        ({"first": [True], "second": [False]}, True, False),
        ({"first": ["true"], "second": ["false"]}, True, False),
        ({"first": [True], "second": [1]}, True, 1),
        ({"first": ["A"], "second": ["B"]}, "a", "b"),
        ({"first": ["yes", "sure"], "second": ["no"]}, "sure", "no"),
        ({"first": {"below": 0}, "second": {"above": 0}, "tie": [0]}, -3, 1),
        ({"first": {"above": 0}, "second": {"below": 0}}, 0.5, -2),
        ({"first": {"above": 3}, "second": {"below": 3}, "tie": [3]}, "5", "1"),
    ],
)
def test_meanings_that_are_given(labels: Record, first: Any, second: Any) -> None:
    assert orders(judged(AB, "label", first, second), columns={"label": "label"}, labels=labels) == RIGHT
    assert orders(judged(AB, "label", first, second), labels=labels) == RIGHT  # the label is found


def test_the_first_follows_answers_and_chosen() -> None:
    records = judged(AB, "label", 1, 0)
    labels = {"first": [1], "second": [0]}
    for columns in ({"answers": list(AB), "label": "label"}, {"chosen": AB[0], "rejected": AB[1], "label": "label"}):
        assert orders(records, columns=columns, labels=labels) == RIGHT
    assert orders(records, columns={"answers": [*reversed(AB)], "label": "label"}, labels=labels) == REVERSED


def test_a_reversed_mapping_is_not_taken_by_the_numbers_of_the_names() -> None:
    columns = {"chosen": ONE[1], "rejected": ONE[0], "label": "label"}
    assert "not certain" in refusal(judged(ONE, "label", 1, 2), columns=columns).problem


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_value_outside_the_meanings_stops(write: Write, policy: Any) -> None:
    records = [*judged(AB, "winner", "A", "B", count=120), *judged(AB, "winner", "C", "C")]
    path = write("prefs.jsonl", records)
    with pytest.raises(UserError) as caught:
        load_pairs(path, role="train", on_bad_record=policy)
    assert "winner is C, which is given no meaning" in caught.value.problem
    assert "winner: A (50 x), B (50 x), C (2 x)." in caught.value.problem  # of the sample and from here on
    assert caught.value.where == f"{path}:121"
    source = DataSource(path=path, columns={"label": "winner"}, labels={"first": ["A"], "second": ["B"], "tie": ["C"]})
    assert load_pairs([source], role="train").dropped == {"tied label": 2}


@pytest.mark.parametrize("empty", [None, ""])
def test_a_record_with_an_empty_label_is_dropped_and_counted(write: Write, empty: Any) -> None:
    unlabelled = {"prompt": "p", AB[0]: "x", AB[1]: "y"}
    path = write("prefs.jsonl", [*judged(AB, "winner", "A", "B"), {**unlabelled, "winner": empty}])
    assert load_pairs(path, role="train").dropped == {"no label": 1}
    with pytest.raises(UserError, match="no label"):
        load_pairs(path, role="train", on_no_signal="error")
    lacking = write("lacking.jsonl", [*judged(AB, "winner", "A", "B"), unlabelled])
    with pytest.raises(UserError, match="winner: expected a label, got nothing"):
        load_pairs(lacking, role="train")
    source = DataSource(path=path, labels={"first": ["A"], "second": ["B"], "tie": [empty]})
    assert load_pairs([source], role="train").dropped == {"tied label": 1}


# Winner columns


@pytest.mark.parametrize("tie", ["winner_tie", "tie", None])
@pytest.mark.parametrize(("yes", "no"), [(1, 0), ("1", "0"), (True, False)])
def test_winner_columns(tie: str | None, yes: Any, no: Any) -> None:
    records = [
        {"prompt": "p", AB[0]: "good", AB[1]: "bad", "winner_model_a": yes, "winner_model_b": no},
        {"prompt": "p", AB[0]: "bad", AB[1]: "good", "winner_model_a": no, "winner_model_b": yes},
    ]
    if tie:
        records = [{**record, tie: no} for record in records]
        records.append({"prompt": "p", AB[0]: "x", AB[1]: "y", "winner_model_a": no, "winner_model_b": no, tie: yes})
    assert orders(records) == RIGHT
    columns = {"answers": [*reversed(AB)], "label": ["winner_model_b", "winner_model_a", *([tie] if tie else [])]}
    assert orders(records, columns=columns) == RIGHT


def test_winner_columns_of_which_none_is_set_stop() -> None:
    record = {"prompt": "p", AB[0]: "x", AB[1]: "y", "winner_a": 0, "winner_b": 0}
    other = {**record, "winner_a": 1}
    layout = detect([other, record], {}, "prefs")
    with pytest.raises(UnknownLabelError, match="winner_a = 0, winner_b = 0"):
        to_pair(record, layout, "prefs:2", Counter())


# Scores and ranks


@pytest.mark.parametrize(
    ("fields", "scores"),
    [
        (AB, ("score_a", "score_b")),
        (AB, ("response_a_rating", "response_b_rating")),
        (ZERO, ("reward_0", "reward_1")),
        (("answerA", "answerB"), ("scoreA", "scoreB")),
    ],
)
def test_scores_whose_highest_is_best(fields: tuple[str, str], scores: tuple[str, str]) -> None:
    assert orders(scored(fields, scores, 0.5, -0.5)) == RIGHT
    columns = {"answers": [*reversed(fields)], "scores": [*reversed(scores)]}
    assert orders(scored(fields, scores, 0.5, -0.5), columns=columns) == RIGHT


@pytest.mark.parametrize("word", ["toxicity", "loss", "perplexity", "error", "distance", "penalty", "toxicity_score"])
def test_scores_whose_lowest_may_be_best(word: str, tmp_path: Path) -> None:
    records = scored(AB, (f"{word}_a", f"{word}_b"), 0.1, 0.9)
    error = refusal(records)
    lowest, highest = lines(error, tmp_path)
    assert (orders(records, **lowest), orders(records, **highest)) == (RIGHT, REVERSED)
    assert lines(refusal(records, columns={"scores": [f"{word}_a", f"{word}_b"]}), tmp_path) == [lowest, highest]


@pytest.mark.parametrize(("ranks", "is_told"), [("ranking", True), ("responses.rank", False)])
def test_a_list_of_ranks_may_be_one_of_places(ranks: str, is_told: bool) -> None:
    texts = ["a", "b", "c"]
    record: Record = {"prompt": "p", "responses": texts, "ranking": [2, 0, 1]}
    if not is_told:
        record = {"prompt": "p", "responses": [{"text": text, "rank": i} for i, text in enumerate(texts)]}
    error = refusal([record])
    assert f"told by '{ranks}'" in error.problem
    assert ("holds places of responses, the best one first" in error.fix) == is_told


def test_ranks_need_to_say_which_is_best(tmp_path: Path) -> None:
    records = scored(AB, ("rank_a", "rank_b"), 1, 2)
    lowest, highest = lines(refusal(records), tmp_path)
    assert (orders(records, **lowest), orders(records, **highest)) == (RIGHT, REVERSED)


def test_a_partial_mapping_keeps_the_order_by_scores(tmp_path: Path) -> None:
    records = [
        {name if name != "prompt" else "user_prompt": value for name, value in record.items()}
        for record in scored(AB, ("score_a", "score_b"), 9, 2)
    ]
    (line,) = lines(refusal(records), tmp_path)
    assert orders(records, **line) == RIGHT
    assert orders(records, columns={"prompt": "user_prompt"}) == RIGHT
    sides = {"prompt": "user_prompt", "chosen": AB[0], "rejected": AB[1]}
    found = refusal(records, columns=sides)
    assert "score_a and score_b may say which one" in found.problem
    by_scores, as_said = lines(found, tmp_path)
    assert orders(records, **by_scores) == RIGHT
    assert orders(records, **as_said) == RIGHT | REVERSED


@pytest.mark.parametrize(
    ("responses", "scores", "columns"),
    [
        (["middling", "bad", "good"], {"scores": [2, 1, 3]}, {}),
        (["middling", "bad", "good"], {"ratings": ["2", "1", "3"]}, {}),
        (["bad", "good"], {"rating": [1.0, 2.0]}, {}),
        (["middling", "bad", "good"], {"all_rm_scores": [0.2, 0.1, 0.3]}, {}),
        (["middling", "bad", "good"], {"ranking": [2, 3, 1]}, {"rank": "ranking", "best": "lowest"}),
        (["middling", "bad", "good"], {"grades": [2, 1, 3]}, {"scores": "grades"}),
    ],
)
def test_a_list_of_responses_with_scores(responses: list[str], scores: Record, columns: Record) -> None:
    assert orders([{"prompt": "p", "responses": responses, **scores}], columns=columns) == RIGHT


@pytest.mark.parametrize(
    ("entry", "columns"),
    [
        (lambda text, score: {"response": text, "overall_score": score, "fine-grained_score": -score}, {}),
        (lambda text, score: {"text": text, "rating": score}, {}),
        (
            lambda text, score: {"said": text, "place": -score},
            {"answers": "completions.said", "rank": "completions.place", "best": "lowest"},
        ),
        (
            lambda text, score: {"turns": [{"role": "assistant", "content": text}], "marks": {"all": score}},
            {"answers": "completions.turns", "scores": "completions.marks.all"},
        ),
    ],
)
def test_a_list_of_objects(entry: Any, columns: Record) -> None:
    entries = [entry("middling", 2), entry("good", 3), entry("bad", 1)]
    assert orders([{"prompt": "p", "completions": entries}], columns=columns) == RIGHT


def test_an_index_beside_a_list_of_two() -> None:
    records = [
        {"prompt": "p", "summaries": [{"text": "good"}, {"text": "bad"}], "choice": 0},
        {"prompt": "p", "summaries": [{"text": "bad"}, {"text": "good"}], "choice": 1},
    ]
    assert orders(records) == RIGHT


def test_responses_in_more_than_two_fields() -> None:
    names = ("response_1", "response_2", "response_3")
    scores = {"score_1": 2, "score_2": 1, "score_3": 3}
    record = {"prompt": "p", **dict(zip(names, ("middling", "bad", "good"), strict=True)), **scores}
    assert orders([record]) == RIGHT
    assert orders([record], columns={"answers": list(names), "scores": list(scores)}) == RIGHT


@pytest.mark.parametrize("missing", [None, "", float("nan")])
def test_a_score_that_orders_must_be_there(missing: Any) -> None:
    records = scored(AB, ("score_a", "score_b"), 2, 1)
    layout = detect(records, {}, "prefs")
    with pytest.raises(RecordError, match="score_b is missing"):
        to_pair({**records[0], "score_b": missing}, layout, "prefs:3", Counter())


@pytest.mark.parametrize("missing", [None, "", " ", float("nan")])
def test_a_score_that_orders_nothing_may_be_missing(missing: Any) -> None:
    record = {"prompt": "p", "chosen": "good", "rejected": "bad", "score_chosen": missing, "score_rejected": missing}
    assert orders([record]) == RIGHT


@pytest.mark.parametrize(
    "scores",
    [
        {"score_chosen": 1, "score_rejected": 2},
        {"chosen_rating": 1, "rejected_rating": 2},
        {"rating_chosen": 1, "rating_rejected": 2},
        {"reward_chosen": 1, "reward_rejected": 2},
        {"chosen-rating": 1, "rejected-rating": 2},
        {"metadata": {"chosen_score": 1, "rejected_score": 2}},
        {"scores": {"chosen": 1, "rejected": 2}},
        {"chosen_avg_rating": 1, "rejected_avg_rating": 2},
    ],
)
def test_scores_against_the_order_are_seen(write: Write, scores: Record) -> None:
    record = {"prompt": "p", "chosen": "good", "rejected": "bad", **scores}
    loaded = load_pairs(write("prefs.jsonl", [record]), role="train")
    assert loaded.warnings == {"scores order the pair against its label": 1}


# Nothing, or two things, say the order


@pytest.mark.parametrize(
    "fields",
    [
        ZERO, ONE, AB, ("answer1", "answer2"), ("left", "right"), ("model_a", "model_b"), ("responseA", "responseB"),
        ("first_reply", "second_reply"), ("A", "B"),
    ],
)  # fmt: skip
def test_neutral_names_have_no_order(fields: tuple[str, str], tmp_path: Path) -> None:
    records = [{"prompt": "p", fields[0]: "good", fields[1]: "bad"}]
    error = refusal(records)
    assert "told by no field" in error.problem
    assert [orders(records, **line) for line in lines(error, tmp_path)] == [RIGHT, REVERSED]
    with pytest.raises(UserError, match="told by no field"):
        orders(records, columns={"answers": list(fields)})


@pytest.mark.parametrize("values", [(0, 1), (5, 7), (True, False), ("0", "1")])
def test_two_values_under_a_name_that_says_nothing_are_offered_as_a_label(
    values: tuple[Any, Any], tmp_path: Path
) -> None:
    error = refusal(judged(ONE, "pick", *values, topic="t", turns=1))
    assert "; pick may be a label: " in error.problem
    found = [orders(judged(ONE, "pick", *values), **line) for line in lines(error, tmp_path)]
    assert found in ([RIGHT, REVERSED], [REVERSED, RIGHT])


@pytest.mark.parametrize("more", [{"pick": 1}, {"num_turns": 1}, {"is_response_1_safe": True}])
def test_what_counts_or_judges_one_response_is_not_offered_as_a_label(more: Record) -> None:
    (name,) = more
    records = judged(ONE, name, more[name], 2 if name == "num_turns" else more[name])
    assert "may be a label" not in refusal(records).problem


@pytest.mark.parametrize(
    ("values", "meanings"),
    [
        ([1, 5, 2, 4], [{"first": {"below": 3}, "second": {"above": 3}},
                        {"first": {"above": 3}, "second": {"below": 3}}]),
        ([-0.5, 2.5], [{"first": {"below": 0}, "second": {"above": 0}},
                       {"first": {"above": 0}, "second": {"below": 0}}]),
        ([0, 2, 1], [{"first": [0], "second": [1], "tie": [2]}, {"first": [1], "second": [0], "tie": [2]},
                     {"first": [1], "second": [2], "tie": [0]}]),
        (["x", "y", "tie"], [{"first": ["x"], "second": ["y"], "tie": ["tie"]},
                             {"first": ["y"], "second": ["x"], "tie": ["tie"]}]),
        (["A", "B", "unsure"], [{"first": ["A"], "second": ["B"], "tie": ["unsure"]}]),
        ([*range(20)], [{"first": {"below": 9.5}, "second": {"above": 9.5}},
                        {"first": {"above": 9.5}, "second": {"below": 9.5}}]),
    ],
)  # fmt: skip
def test_the_lines_for_a_label_give_each_value_a_place(
    values: list[Any], meanings: list[Record], tmp_path: Path
) -> None:
    records = [{"prompt": "p", AB[0]: "x", AB[1]: "y", "preference": value} for value in values]
    pasted = lines(refusal(records), tmp_path)
    assert [line["labels"] for line in pasted] == meanings
    for line in pasted:
        assert orders(records, **line) == {("x", "y"), ("y", "x")}


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
        ({"chosen": "good"}, "the preferred one once more under chosen"),
        ({"response_c": "middling", "winner": "a"}, "a label, winner, which orders two of them only"),
        ({"answer_a": "x", "answer_b": "y"}, "may hold its responses in response_a and response_b or answer_a and"),
    ],
)
def test_what_else_may_say_the_order_is_named(more: Record, problem: str) -> None:
    assert problem in refusal([{"prompt": "p", AB[0]: "good", AB[1]: "bad", **more}]).problem


def test_labels_and_scores_inside_an_object_order_too() -> None:
    records = judged(AB, "x", "a", "b")
    assert orders([{**record, "annotation": {"winner": record["x"]}, "x": 0} for record in records]) == RIGHT
    records = scored(AB, ("a", "b"), 2, 1)
    nested = [{"prompt": "p", **{f: r[f] for f in AB}, "scores": {"a": r["a"], "b": r["b"]}} for r in records]
    assert orders(nested) == RIGHT


def test_a_list_without_scores_has_no_order(tmp_path: Path) -> None:
    records = [{"prompt": "p", "responses": ["good", "middling", "bad"]}]
    (line,) = lines(refusal(records), tmp_path)
    assert orders(records, **line) == RIGHT


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
def test_two_things_that_say_different_orders(more: list[Record], tmp_path: Path) -> None:
    winners = judged(AB, "winner", "A", "B", count=4)
    records = [{**one, **other} for one, other in zip(winners, more, strict=False)]
    error = refusal(records)
    assert "both winner and" in error.problem
    assert orders(records, **lines(error, tmp_path)[0]) == RIGHT


@pytest.mark.parametrize(
    "more",
    [
        [{"label": "a"}, {"label": "b"}],
        [{"score_a": 2, "score_b": 1}, {"score_a": 1, "score_b": 2}],
        [{"rank_a": 1, "rank_b": 2}, {"rank_a": 2, "rank_b": 1}],
        [{"label": 1}, {"label": 0}],
        [{"toxicity_a": 1, "toxicity_b": 2}, {"toxicity_a": 1, "toxicity_b": 2}],
        [{"preference_reason": "a"}, {"preference_reason": "a"}],
        [{"label": 1}, {"label": 1}],
    ],
)
def test_two_things_that_say_one_order_or_nothing(more: list[Record]) -> None:
    winners = judged(AB, "winner", "A", "B")
    assert orders([{**one, **other} for one, other in zip(winners, more, strict=True)]) == RIGHT


@pytest.mark.parametrize("field", ["chosen_index", "winner"])
@pytest.mark.parametrize("responses", [[], ["good"], None, "good"])
def test_a_record_without_two_responses_does_not_choose_between_two_orders(responses: Any, field: str) -> None:
    whole = [
        {"prompt": "p", "responses": ["good", "bad"], "scores": [2, 1], field: 0},
        {"prompt": "p", "responses": ["bad", "good"], "scores": [1, 2], field: 1},
    ]
    layout = detect([{**whole[0], "responses": responses, "scores": []}, *whole], {}, "prefs.jsonl")
    assert {to_pair(one, layout, "prefs.jsonl:1", Counter()).chosen for one in whole} == {"good"}


# What the person states


def test_stated_sides_stand_with_a_remark() -> None:
    records = [{"prompt": "p", AB[0]: "good", AB[1]: "bad", "note": "x", "id": 3, "lang": "en"}]
    columns = {"chosen": AB[0], "rejected": AB[1]}
    assert orders(records, columns=columns) == RIGHT
    layout = detect(records, columns, "prefs")
    assert layout.remarks == ("response_a is taken as chosen because columns says so",)
    assert layout.unused == ("note",)


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
def test_stated_sides_beside_a_field_that_would_order_them(more: Record, tmp_path: Path) -> None:
    records = [{"prompt": "p", AB[0]: "good", AB[1]: "bad", **more}]
    columns = {"chosen": AB[0], "rejected": AB[1]}
    error = refusal(records, columns=columns)
    assert " and ".join(more) in error.problem
    assert orders(records, columns=columns, direction="first") == RIGHT
    assert orders(records, **lines(error, tmp_path)[-1]) == RIGHT


def test_stated_sides_that_are_named_so_stand_beside_a_label() -> None:
    records = [{"q": "p", "good_answer": "good", "bad_answer": "bad", "label": 0}]
    columns = {"prompt": "q", "chosen": "good_answer", "rejected": "bad_answer"}
    assert orders(records, columns=columns) == RIGHT
    assert detect(records, columns, "prefs").unused == ("label",)


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
        ({"prompt": AB[0]}, {}, "prompt is 'response_a', which is a response by its name"),
        ({"system": AB[1]}, {}, "system is 'response_b', which is a response by its name"),
    ],
)
def test_mappings_that_contradict_themselves(columns: Record, said: Record, problem: str) -> None:
    record = {"prompt": "p", AB[0]: "x", AB[1]: "y", "n": 1} | ({"winner": "A"} if "label" in columns else {})
    assert problem in refusal([record], columns=columns, **said).problem


# Sides that name other fields


@pytest.mark.parametrize(
    ("fields", "first", "second"),
    [
        (AB, "response_a", "response_b"),
        (AB, "A", "B"),
        (AB, "a", "b"),
        (("conversation_a", "conversation_b"), "model_a", "model_b"),
        (ONE, "1", "2"),
        (ONE, "Output 1", "output 2"),
    ],
)
def test_sides_that_name_fields_are_looked_up(fields: tuple[str, str], first: str, second: str) -> None:
    records = [
        {"prompt": "p", fields[0]: "good", fields[1]: "bad", "chosen": first, "rejected": second},
        {"prompt": "p", fields[0]: "bad", fields[1]: "good", "chosen": second, "rejected": first},
    ]
    assert orders(records) == RIGHT
    layout = detect(records, {}, "prefs")
    with pytest.raises(UnknownLabelError, match="chosen is a text of its own"):
        to_pair({**records[0], "chosen": "a text of its own"}, layout, "prefs:3", Counter())


@pytest.mark.parametrize(
    "options",
    [
        {"A": "one", "B": "two", "C": "three", "D": "four"},
        {"option_a": "one", "option_b": "two", "option_c": "three"},
        {"choices": ["one", "two", "three", "four"]},
        {},
    ],
)
def test_letters_that_answer_a_question_stay_answers(options: Record) -> None:
    records = [{"prompt": "Which?", **options, "chosen": "A", "rejected": "B"}]
    assert orders(records) == {("A", "B")}


def test_letters_that_may_be_either_are_refused(tmp_path: Path) -> None:
    records = [{"prompt": "Which?", "A": "good", "B": "bad", "chosen": "A", "rejected": "B"}]
    letters, texts = lines(refusal(records), tmp_path)
    assert orders(records, **letters) == {("A", "B")}
    assert orders(records, **texts) == RIGHT


def test_texts_that_are_names_only_here_and_there_are_texts() -> None:
    records = [
        {"prompt": "p", AB[0]: "x", AB[1]: "y", "chosen": "response_a", "rejected": "response_b"},
        {"prompt": "p", AB[0]: "x", AB[1]: "y", "chosen": "good", "rejected": "bad"},
    ]
    assert ("good", "bad") in orders(records)


# Layouts that are known by their own fields; `test_layouts` has each of them

PKU = judged(ZERO, "better_response_id", 0, 1, safer_response_id=1)


def test_a_mapping_over_a_known_layout() -> None:
    records = judged(ZERO, "better_response_id", 0, 1) + judged(ZERO, "better_response_id", 0, 1)
    records = [{**record, "safer_response_id": 1 - record["better_response_id"]} for record in records]
    assert orders(records, columns={"label": "safer_response_id"}) == REVERSED
    assert orders(records, labels={"first": [1], "second": [0]}) == REVERSED
    assert orders(records, columns={"system": "prompt"}) == RIGHT
    columns = {"chosen": ZERO[0], "rejected": ZERO[1]}
    assert "better_response_id (0 (2 x), 1 (2 x))" in refusal(records, columns=columns).problem
    assert orders(records, columns=columns, direction="first") == RIGHT | REVERSED


def test_sides_of_their_own_come_before_a_known_layout() -> None:
    record = {**PKU[0], "chosen": "good", "rejected": "bad", "better_response_id": 1}
    assert detect([record], {}, "prefs").name == ""
    assert orders([record]) == RIGHT


def test_turns_of_the_arena_table_must_be_the_same_up_to_the_last(write: Write) -> None:
    one = {"prompt": '["p", "q"]', "response_a": '["x", "good"]', "winner_model_a": 1, "winner_model_b": 0}
    one["winner_tie"] = 0
    same, other = {**one, "response_b": '["x", "bad"]'}, {**one, "response_b": '["y", "bad"]'}
    (pair,) = load_pairs(write("same.jsonl", [same]), role="train").pairs
    assert (pair.chosen, pair.rejected) == ("good", "bad")
    for record, problem in (
        (other, "turns behind the prompt"),
        ({**one, "response_b": '["bad"]'}, "1 answers to 2 turns"),
        ({**one, "response_b": "[null, 3]"}, "expected a list of texts"),
    ):
        with pytest.raises(UserError, match=problem):
            load_pairs(write("other.jsonl", [record]), role="train")


# What is said of it


def test_a_label_that_repeats_the_name_of_a_model(tmp_path: Path) -> None:
    records = [
        {"prompt": "p", AB[0]: "good", AB[1]: "bad", "model_a": "m", "model_b": "n", "winner": "m"},
        {"prompt": "p", AB[0]: "bad", AB[1]: "good", "model_a": "m", "model_b": "n", "winner": "n"},
        {"prompt": "p", AB[0]: "good", AB[1]: "bad", "model_a": "n", "model_b": "m", "winner": "n"},
        {"prompt": "p", AB[0]: "x", AB[1]: "y", "model_a": "n", "model_b": "m", "winner": "tie"},
    ]
    assert orders(records) == RIGHT
    assert orders(records, columns={"label": "winner"}) == RIGHT
    layout = detect(records, {}, "prefs")
    with pytest.raises(UnknownLabelError):  # both responses are by one model
        to_pair({**records[0], "model_b": "m"}, layout, "prefs:5", Counter())
    sides = [{**r, "chosen": r["winner"], "rejected": ({"m", "n"} - {r["winner"]}).pop()} for r in records[:3]]
    (line,) = lines(refusal([{k: v for k, v in r.items() if k != "winner"} for r in sides]), tmp_path)
    assert orders(sides, **line) == RIGHT


def test_the_reader_says_what_decided(write: Write) -> None:
    records = [{**one, "background": "s", "source": "here", "score_x": 3} for one in PKU]
    path = write("prefs.jsonl", records)
    reader = PairReader(path, role="train")
    list(reader)
    assert reader.examples == [f"{path}:1: chosen by better_response_id = 0: 'good' over 'bad'"]
    assert reader.remarks == [
        "better_response_id: 0 means response_0, 1 means response_1",
        "not used: safer_response_id, background, score_x",
    ]
    plain = PairReader(write("plain.jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r"}]), role="train")
    list(plain)
    assert (plain.examples, plain.remarks) == ([], [])


@pytest.mark.parametrize(
    ("record", "unused"),
    [
        ({"background": "s", "source": "x", "prompt_id": "1", "score_chosen": 1.0}, ("background",)),
        ({"context": "what was read", "category": "qa", "created_at": "now", "model": "m"}, ("context",)),
        ({"context": "", "images": [], "label": None}, ()),
        ({"user_prompt": "u", "chosen_model": "m", "rejected_model": "n"}, ("user_prompt",)),
        ({"label": 0}, ("label",)),
    ],
)
def test_fields_that_are_not_used_are_named(record: Record, unused: tuple[str, ...]) -> None:
    assert detect([{"prompt": "p", "chosen": "c", "rejected": "r", **record}], {}, "prefs").unused == unused


def test_what_stands_beside_a_used_field_is_named_too() -> None:
    record = {
        "input": {"messages": [{"role": "user", "content": "u"}], "tools": [{"name": "f"}], "effort": "low", "id": 3},
        "preferred_output": "c",
        "non_preferred_output": "r",
    }
    assert detect([record], {}, "prefs").unused == ("input.effort",)


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
    with pytest.raises(UserError) as error:
        detect([record], {}, "prefs.jsonl")
    assert f"has {worse} and no field that is the chosen response by its name; {better} may be meant" in str(
        error.value
    )
    assert f"columns: {{chosen: {better}, rejected: {worse}}}" in str(error.value)
    pair = to_pair(record, detect([record], {"chosen": better, "rejected": worse}, "f"), "f:1", Counter())
    assert (pair.prompt, pair.chosen, pair.rejected) == ("Why?", "good", "bad")


def test_a_mark_that_is_named_the_worse_is_no_response() -> None:
    record = {"prompt": "Why?", "output": "good", "rejected": True}
    with pytest.raises(RecordError, match="chosen is missing"):
        to_pair(record, detect([record], {}, "f"), "f:1", Counter())
