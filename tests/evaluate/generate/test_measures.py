"""What is made of answers: counts, by hand and by other code; files for other tools; the folder after damage."""

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from simpo_cli.errors import UserError
from simpo_cli.evaluate.generate.folder import (
    MANIFEST,
    AnswerFolder,
    alpaca_eval_rows,
    arena_hard_answers,
    arena_hard_questions,
    is_answers,
    markdown_counts,
)
from simpo_cli.evaluate.generate.measures import (
    Answer,
    distinct,
    is_refusal,
    mean_ratio,
    measure_answers,
    repeated_share,
)
from simpo_cli.evaluate.generate.prompts import Question
from tests.evaluate.generate.questions import answer_of, random_questions


def test_repeated_grams() -> None:
    assert repeated_share([1, 2, 3]) == 0.0
    assert repeated_share([1, 2, 3, 4, 5]) == 0.0
    assert repeated_share([7] * 8) == pytest.approx(4 / 5)  # five grams, one of them different
    assert repeated_share([1, 2, 3, 4, 9, 1, 2, 3, 4]) == pytest.approx(1 / 6)


def test_distinct_grams() -> None:
    answers = [[1, 2, 1], [1, 2, 3]]
    assert distinct(answers, 1) == pytest.approx(3 / 6)
    assert distinct(answers, 2) == pytest.approx(3 / 4)
    assert distinct([[1], []], 2) is None
    draw = random.Random(1)
    texts = [[draw.randrange(9) for _ in range(30)] for _ in range(20)]
    pairs = [pair for text in texts for pair in pairwise(text)]
    assert distinct(texts, 2) == len(set(pairs)) / len(pairs)


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, but I cannot assist you with this request.", True),
        ("I am unable to provide that.", True),
        ("As an AI language model, I cannot give medical advice.", True),
        ("Sorry, I can't do that.", True),
        ("I must decline.", True),
        ("I won't help you build that.", True),
        ("I'm sorry to hear that your page is gone. Open Trash and press Restore.", False),
        ("Open Settings. If you cannot help it, call us.", False),
        ("You can't invite people without a seat.", False),
        ("As an AI assistant, I would look at the logs first.", False),
        ("", False),
        ("First do this. " * 20 + "I'm sorry, but I can't help with that.", False),
    ],
)
def test_refusals(text: str, refuses: bool) -> None:
    assert is_refusal(text) == refuses


def test_the_interval_of_a_ratio_covers_at_its_rate() -> None:
    """A simulation with a known ratio of 1.3: correlated lengths of 60 prompts."""
    draw = np.random.default_rng(2)
    covered = 0
    for _ in range(600):
        base = draw.gamma(4, 25, 60)
        trained = base * 0.9 + draw.gamma(4, 10, 60)
        ratio = mean_ratio(trained.tolist(), base.tolist())
        assert ratio is not None
        assert ratio.value == pytest.approx(trained.mean() / base.mean())
        covered += ratio.low <= 1.3 <= ratio.high
    assert 0.92 <= covered / 600 <= 0.975
    assert mean_ratio([1.0], [0.0]) is None


def test_the_document_of_two_models() -> None:
    base = [Answer("a", "one two", (1, 2), True), Answer("b", "I'm sorry, I can't.", (5, 5, 5, 5, 5, 5), False)]
    trained = [Answer("a", "one two", (1, 2), True), Answer("b", "Do this", (3, 4, 5, 6), True)]
    document = measure_answers(base, trained)
    assert document["tokens"]["base"]["value"] == 4
    assert document["tokens"]["ratio"]["value"] == pytest.approx(3 / 4)
    assert document["no_end"]["base"]["value"] == 0.5
    assert document["no_end"]["difference"]["value"] == -0.5
    assert document["refusals"]["trained"]["value"] == 0
    assert document["repeated_4_grams"]["base"]["value"] == pytest.approx((2 / 3) / 2)
    assert document["same_answers"] == 1
    # of as many tokens as both have: (1, 2) and (5, 5, 5, 5) against (1, 2) and (3, 4, 5, 6)
    assert document["distinct_1"] == {"base": 3 / 6, "trained": 1.0}


def test_the_longer_model_is_not_called_less_varied_for_its_length() -> None:
    draw = random.Random(3)
    words = [draw.randrange(50) for _ in range(4000)]
    short = [Answer(str(i), "", tuple(words[40 * i : 40 * i + 20]), True) for i in range(50)]
    long = [Answer(str(i), "", tuple(words[40 * i : 40 * i + 40]), True) for i in range(50)]
    document = measure_answers(short, long)
    assert document["distinct_2"]["base"] == document["distinct_2"]["trained"]


def test_answers_to_other_prompts_are_our_mistake() -> None:
    with pytest.raises(AssertionError):
        measure_answers([Answer("a", "", (), True)], [Answer("b", "", (), True)])


def labelled() -> list[Question]:
    first, second = random_questions(2, seed=1)
    return [first, Question(second.key, second.turns, second.ids, second.where, {"uid": "u", "dataset": "koala"})]


def test_alpaca_eval_takes_one_generator_and_the_same_instructions() -> None:
    questions = labelled()
    rows = alpaca_eval_rows(questions, [answer_of(one, "So.") for one in questions], "trained")
    assert rows[0] == {"instruction": "question 0?", "output": "So.", "generator": "trained", "dataset": "simpo"}
    assert rows[1]["dataset"] == "koala"
    assert {row["generator"] for row in rows} == {"trained"}  # what its main.py asks for, to name the model


def test_arena_hard_finds_answers_by_uid_and_reads_the_last_message() -> None:
    questions = labelled()
    answers = [answer_of(one, "# Title\n- **one**\n1. two") for one in questions]
    rows = arena_hard_answers(questions, answers, "trained", 5.0)
    asked = arena_hard_questions(questions)
    assert [row["uid"] for row in asked] == [questions[0].key, "u"] == [row["uid"] for row in rows]
    for question, row in zip(asked, rows, strict=True):
        assert question["prompt"] == row["messages"][-2]["content"]
        assert row["messages"][-1]["content"]["answer"] == answers[0].text
        assert row["model"] == "trained"
        assert row["tstamp"] == 5.0
        # style control sums each of these, and divides by the first
        features = [value if isinstance(value, int) else sum(value.values()) for value in row["metadata"].values()]
        assert features == [len(answers[0].ids), 1, 2, 1]
    assert len({row["ans_id"] for row in rows}) == 2


def test_markdown_is_counted_outside_of_code() -> None:
    text = "# a\n### b\n```\n# c\n- d\n**e**\n```\n* f\n  2. g\n__h__ and **i** and **j**"
    counts = markdown_counts(text)
    assert counts["header_count"] == {"h1": 1, "h2": 0, "h3": 1, "h4": 0, "h5": 0, "h6": 0}
    assert counts["list_count"] == {"ordered": 1, "unordered": 1}
    assert counts["bold_count"] == {"**": 2, "__": 1}


QUESTIONS = random_questions(3, seed=1)
MADE = {"schema_version": 1, "kind": "answers", "models": {"base": {"name": "b"}, "trained": {"name": "t"}}}


def folder_at(path: Path) -> AnswerFolder:
    return AnswerFolder.make(path / "answers", MADE, QUESTIONS)


def answers_to(questions: Sequence[Question], *texts: str) -> list[Answer]:
    return [Answer(one.key, text, (5, 6), True) for one, text in zip(questions, texts, strict=True)]


def test_questions_come_back_as_they_were(tmp_path: Path) -> None:
    made = folder_at(tmp_path)
    assert is_answers(made.path)
    assert AnswerFolder.open(made.path) == made == folder_at(tmp_path)


def test_an_answer_that_a_kill_cut_short_is_asked_again(tmp_path: Path) -> None:
    made = folder_at(tmp_path)
    made.add("base", "greedy", answers_to(QUESTIONS[:2], "é", "b"))
    file = made.file("base", "greedy")
    file.write_bytes(file.read_bytes()[:-20])
    assert [one.key for one in made.still_to_ask("base")["greedy"]] == [QUESTIONS[1].key, QUESTIONS[2].key]
    made.add("base", "greedy", answers_to(QUESTIONS[1:], "c", "d"))
    assert [answer.text for answer in made.in_order("base", "greedy")] == ["é", "c", "d"]


def test_reading_leaves_a_line_that_is_being_written_alone(tmp_path: Path) -> None:
    made = folder_at(tmp_path)
    made.add("base", "greedy", answers_to(QUESTIONS[:2], "a", "b"))
    file = made.file("base", "greedy")
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    assert list(made.answers("base", "greedy")) == [QUESTIONS[0].key]
    with file.open("ab") as writer:  # which was half way
        writer.write(whole[-20:])
    assert [answer.text for answer in made.answers("base", "greedy").values()] == ["a", "b"]


def test_answers_that_are_not_all_there(tmp_path: Path) -> None:
    made = folder_at(tmp_path)
    made.add("trained", "sampled", [Answer(QUESTIONS[0].key, "", (), False)])
    with pytest.raises(UserError, match="lacks 2 of 3 answers") as missing:
        made.in_order("trained", "sampled")
    assert "resumes where it stopped" in missing.value.fix


def test_damage_is_named(tmp_path: Path) -> None:
    made = folder_at(tmp_path)
    made.file("base", "greedy").write_text('{"key": "a"}\n')
    with pytest.raises(UserError, match="a row lacks 'output'"):
        made.answers("base", "greedy")
    made.file("base", "greedy").write_text("nonsense\n")
    with pytest.raises(UserError, match="is no line of this file"):
        made.answers("base", "greedy")
    (made.path / MANIFEST).write_text("{}")
    with pytest.raises(UserError, match="cannot be read as a folder of answers"):
        AnswerFolder.open(made.path)
