"""Which response is preferred: read where something in the records says so; test_refusals.py has what says nothing.

Every record is written so that the better response is "good" and the other one "bad": reading it right gives
("good", "bad") for every record, and a reversed reading the opposite.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from simpo_cli.data.formats import NoSignalError, UnknownLabelError, detect, to_pair
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import RecordError, RecordNote
from simpo_cli.errors import UserError
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import DataSource
from tests.data.pair_files import Write, load_pairs

Record = dict[str, Any]
RIGHT, REVERSED = {("good", "bad")}, {("bad", "good")}
AB, ZERO, ONE = ("response_a", "response_b"), ("response_0", "response_1"), ("output_1", "output_2")
BA = AB[::-1]


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
            found.add((pair.chosen, pair.rejected))
    return found


def refusal(records: Sequence[Record], **said: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        orders(records, **said)
    return caught.value


def lines(error: UserError) -> list[Mapping[str, Any]]:
    """What the lines of a refusal say when they are pasted into a recipe."""
    found = []
    for line in re.findall(r"data\.train: (\[\{.*\}\])", error.fix):
        train = compose("demo", [f"data.train={line}"]).recipe.data.train
        assert not isinstance(train, str)
        found.append({"columns": train[0].columns, "labels": train[0].labels, "direction": train[0].direction})
    return found


def beside(fields: Sequence[str] = AB, texts: Sequence[str] = ("good", "bad"), **more: Any) -> Record:
    """A record of two responses in fields of their own."""
    return {"prompt": "p", **dict(zip(fields, texts, strict=True)), **more}


def judged(fields: tuple[str, str], label: str, first: Any, second: Any, **more: Any) -> list[Record]:
    """Records of two responses and a label; `first` prefers the first field."""
    return [
        beside(fields, **{label: first}, **more),
        beside(fields, ("bad", "good"), **{label: second}, **more),
    ]


def scored(fields: tuple[str, str], scores: tuple[str, str], best: float, worst: float) -> list[Record]:
    return [
        beside(fields, **{scores[0]: best, scores[1]: worst}),
        beside(fields, ("bad", "good"), **{scores[0]: worst, scores[1]: best}),
    ]


# Labels


@pytest.mark.parametrize(
    ("fields", "label", "first", "second"),
    [
        (AB, "preference", "a", "b"),
        (("response_A", "response_B"), "winner", "A", "B"),
        (BA, "winner", "B", "A"),  # the order of the fields in the file decides nothing
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
    assert orders(judged(fields, label, first, second)) == RIGHT


def test_ties_in_many_words_are_counted(write: Write) -> None:
    ties = ["tie", "Tie", "both_bad", "tie (bothbad)", "equal", "Draw", "neither", "both", "same", "none", "both bad"]
    records = [*judged(AB, "winner", "A", "B"), *(beside(winner=tie) for tie in ties)]
    loaded = load_pairs(write("prefs.jsonl", records), role="train")
    assert loaded.dropped == {"tied label": len(ties)}
    assert {(pair.chosen, pair.rejected) for pair in loaded.pairs} == RIGHT


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
    assert orders(records, columns={"answers": list(BA), "label": "label"}, labels=labels) == REVERSED


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_value_outside_the_meanings_stops(write: Write, policy: Any) -> None:
    path = write("prefs.jsonl", [*judged(AB, "winner", "A", "B") * 60, *judged(AB, "winner", "C", "C")])
    with pytest.raises(UserError) as caught:
        load_pairs(path, role="train", on_bad_record=policy)
    assert "winner is C, which is given no meaning" in caught.value.problem
    assert "winner: A (50 x), B (50 x), C (2 x)." in caught.value.problem  # of the sample and from here on
    assert caught.value.where == f"{path}:121"
    source = DataSource(path=path, columns={"label": "winner"}, labels={"first": ["A"], "second": ["B"], "tie": ["C"]})
    assert load_pairs([source], role="train").dropped == {"tied label": 2}


@pytest.mark.parametrize("empty", [None, ""])
def test_a_record_with_an_empty_label_is_dropped_and_counted(write: Write, empty: Any) -> None:
    path = write("prefs.jsonl", [*judged(AB, "winner", "A", "B"), beside(winner=empty)])
    assert load_pairs(path, role="train").dropped == {"no label": 1}
    with pytest.raises(UserError, match="no label"):
        load_pairs(path, role="train", on_no_signal="error")
    lacking = write("lacking.jsonl", [*judged(AB, "winner", "A", "B"), beside()])
    with pytest.raises(UserError, match="winner: expected a label, got nothing"):
        load_pairs(lacking, role="train")
    source = DataSource(path=path, labels={"first": ["A"], "second": ["B"], "tie": [empty]})
    assert load_pairs([source], role="train").dropped == {"tied label": 1}


def test_a_label_that_repeats_the_name_of_a_model() -> None:
    records = [
        beside(model_a="m", model_b="n", winner="m"),
        beside(texts=("bad", "good"), model_a="m", model_b="n", winner="n"),
        beside(model_a="n", model_b="m", winner="n"),
        beside(model_a="n", model_b="m", winner="tie"),
    ]
    assert orders(records) == RIGHT
    assert orders(records, columns={"label": "winner"}) == RIGHT
    layout = detect(records, {}, "prefs")
    with pytest.raises(UnknownLabelError):  # both responses are by one model
        to_pair({**records[0], "model_b": "m"}, layout, "prefs:5", Counter())
    sides = [{**r, "chosen": r["winner"], "rejected": ({"m", "n"} - {r["winner"]}).pop()} for r in records[:3]]
    (line,) = lines(refusal([{k: v for k, v in r.items() if k != "winner"} for r in sides]))
    assert orders(sides, **line) == RIGHT


@pytest.mark.parametrize("tie", ["winner_tie", "tie", None])
@pytest.mark.parametrize(("yes", "no"), [(1, 0), ("1", "0"), (True, False)])
def test_winner_columns(tie: str | None, yes: Any, no: Any) -> None:
    records = scored(AB, ("winner_model_a", "winner_model_b"), yes, no)
    if tie:
        records = [{**record, tie: no} for record in records]
        records.append(beside(winner_model_a=no, winner_model_b=no, **{tie: yes}))
    assert orders(records) == RIGHT
    columns = {"answers": list(BA), "label": ["winner_model_b", "winner_model_a", *([tie] if tie else [])]}
    assert orders(records, columns=columns) == RIGHT


def test_winner_columns_of_which_none_is_set_stop() -> None:
    record = beside(winner_a=0, winner_b=0)
    layout = detect([{**record, "winner_a": 1}, record], {}, "prefs")
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
        *(
            (AB, (f"{quality}_score_a", f"{quality}_score_b"))
            for quality in ("overall", "helpfulness", "gpt4", "human", "reward_model", "avg", "fine-grained")
        ),
    ],
)
def test_scores_whose_highest_is_best(fields: tuple[str, str], scores: tuple[str, str]) -> None:
    assert orders(scored(fields, scores, 0.5, -0.5)) == RIGHT
    columns = {"answers": [*reversed(fields)], "scores": [*reversed(scores)]}
    assert orders(scored(fields, scores, 0.5, -0.5), columns=columns) == RIGHT


SCORED = (("middling", 2), ("good", 3), ("bad", 1))
TEXTS = [text for text, _ in SCORED]
NUMBERED = {"response_1": "middling", "response_2": "good", "response_3": "bad"}
SCORES = {"score_1": 2, "score_2": 3, "score_3": 1}


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        ({"responses": TEXTS, "scores": [2, 3, 1]}, {}),
        ({"responses": TEXTS, "ratings": ["2", "3", "1"]}, {}),
        ({"responses": ["bad", "good"], "rating": [1.0, 2.0]}, {}),
        ({"responses": TEXTS, "all_rm_scores": [0.2, 0.3, 0.1]}, {}),
        ({"responses": TEXTS, "ranking": [2, 1, 3]}, {"rank": "ranking", "best": "lowest"}),
        ({"responses": TEXTS, "grades": [2, 3, 1]}, {"scores": "grades"}),
        ({"raw_generation_responses": ["1", "2"], "generations": ["bad", "good"], "rating": [1, 2]}, {}),
        ({"completions": [{"response": text, "overall_score": n, "fine_score": -n} for text, n in SCORED]}, {}),
        ({"completions": [{"text": text, "rating": n} for text, n in SCORED]}, {}),
        (
            {"completions": [{"said": text, "place": -n} for text, n in SCORED]},
            {"answers": "completions.said", "rank": "completions.place", "best": "lowest"},
        ),
        (
            {"replies": [{"turns": [{"role": "assistant", "content": text}], "of": {"all": n}} for text, n in SCORED]},
            {"answers": "replies.turns", "scores": "replies.of.all"},
        ),
        (NUMBERED | SCORES, {}),
        (NUMBERED | SCORES, {"answers": [*NUMBERED], "scores": [*SCORES]}),
    ],
)
def test_responses_in_a_list_or_in_more_than_two_fields(fields: Record, columns: Record) -> None:
    assert orders([{"prompt": "p", **fields}], columns=columns) == RIGHT


@pytest.mark.parametrize("missing", [None, "", " ", float("nan")])
def test_a_score_that_orders_must_be_there_and_one_that_orders_nothing_may_be_missing(missing: Any) -> None:
    records = scored(AB, ("score_a", "score_b"), 2, 1)
    with pytest.raises(RecordError, match="score_b is missing"):
        to_pair({**records[0], "score_b": missing}, detect(records, {}, "prefs"), "prefs:3", Counter())
    assert orders([beside(("chosen", "rejected"), score_chosen=missing, score_rejected=missing)]) == RIGHT


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
def test_scores_against_the_order_are_seen(scores: Record) -> None:
    record = beside(("chosen", "rejected"), **scores)
    notes: Counter[RecordNote] = Counter()
    to_pair(record, detect([record], {}, "prefs"), "prefs:1", notes)
    assert notes == {RecordNote.AGAINST_LABEL: 1}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({**beside(), "annotation": {"winner": "a"}}, {**beside(texts=("bad", "good")), "annotation": {"winner": "b"}}),
        ({**beside(), "scores": {"a": 2, "b": 1}}, {**beside(texts=("bad", "good")), "scores": {"a": 1, "b": 2}}),
        (
            {"prompt": "p", "summaries": [{"text": "good"}, {"text": "bad"}], "choice": 0},
            {"prompt": "p", "summaries": [{"text": "bad"}, {"text": "good"}], "choice": 1},
        ),
    ],
)
def test_labels_and_scores_inside_an_object_or_beside_a_list(first: Record, second: Record) -> None:
    assert orders([first, second]) == RIGHT


# Two things that may say the order


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


def test_stated_sides_stand_with_a_remark_unless_they_are_named_so() -> None:
    records = [beside(note="x", id=3, lang="en")]
    columns = {"chosen": AB[0], "rejected": AB[1]}
    assert orders(records, columns=columns) == RIGHT
    layout = detect(records, columns, "prefs")
    assert layout.remarks == ("response_a is taken as chosen because columns says so",)
    assert layout.unused == ("note",)
    records = [beside(("good_answer", "bad_answer"), label=0)]
    columns = {"chosen": "good_answer", "rejected": "bad_answer"}
    assert orders(records, columns=columns) == RIGHT
    layout = detect(records, columns, "prefs")
    assert (layout.remarks, layout.unused) == ((), ("label",))


@pytest.mark.parametrize("sides", [("accepted", "rejected"), ("preferred", "rejected")])
def test_names_of_sides_that_share_one_with_the_usual_ones(sides: tuple[str, str]) -> None:
    assert orders([{"input": "p", sides[0]: "good", sides[1]: "bad"}]) == RIGHT


def test_winner_columns_and_scores_follow_the_names_of_the_responses() -> None:
    won = [beside(BA, a_wins=0, b_wins=1, score_a=1, score_b=2)]
    answers = {"answers": list(BA)}
    assert orders(won, columns=answers) == RIGHT
    for part, fields in (("label", ["a_wins", "b_wins"]), ("scores", ["score_a", "score_b"])):
        assert orders(won, columns=answers | {part: fields[::-1]}) == RIGHT
        assert "in another order" in refusal(won, columns=answers | {part: fields}).problem
    webgpt = [{"question": {"full_text": "p"}, "answer_0": "bad", "answer_1": "good", "score_0": -1, "score_1": 1}]
    assert orders(webgpt, columns={"answers": ["answer_1", "answer_0"]}) == RIGHT


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
        beside(fields, chosen=first, rejected=second),
        beside(fields, ("bad", "good"), chosen=second, rejected=first),
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
    assert orders([{"prompt": "Which?", **options, "chosen": "A", "rejected": "B"}]) == {("A", "B")}


def test_texts_that_are_names_only_here_and_there_are_texts() -> None:
    records = [
        beside(AB, ("x", "y"), chosen="response_a", rejected="response_b"),
        beside(AB, ("x", "y"), chosen="good", rejected="bad"),
    ]
    assert ("good", "bad") in orders(records)


# What is said of it


def test_the_reader_says_what_decided(write: Write) -> None:
    more = {"safer_response_id": 1, "background": "s", "source": "here", "score_x": 3}
    path = write("prefs.jsonl", judged(ZERO, "better_response_id", 0, 1, **more))
    reader = PairReader(path, role="train")
    list(reader)
    assert reader.examples == [f"{path}:1: chosen by better_response_id = 0: 'good' over 'bad'"]
    assert reader.remarks == [
        "better_response_id: 0 means response_0, 1 means response_1",
        "not used: safer_response_id, background, score_x",
    ]
    plain = PairReader(write("plain.jsonl", [beside(("chosen", "rejected"))]), role="train")
    list(plain)
    assert (plain.examples, plain.remarks) == ([], [])


def test_scores_that_are_named_beside_a_label_are_compared_with_it(write: Write) -> None:
    path = write("prefs.jsonl", [beside(("x", "y"), won=0, s=1, t=2)])
    columns = {"answers": ["x", "y"], "label": "won", "scores": ["s", "t"]}
    source = DataSource(path=path, columns=columns, labels={"first": [0], "second": [1]})
    reader = PairReader([source], role="train")
    assert [(pair.chosen, pair.rejected) for pair in reader] == [("good", "bad")]
    assert dict(reader.warnings.counts) == {"scores order the pair against its label": 1}
    assert reader.remarks == ["won: 0 means x"]
