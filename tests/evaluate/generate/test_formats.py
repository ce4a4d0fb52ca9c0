"""Files for other tools, read back by code that does what those tools do with them."""

from simpo_cli.evaluate.generate.folder import (
    alpaca_eval_rows,
    arena_hard_answers,
    arena_hard_questions,
    markdown_counts,
)
from simpo_cli.evaluate.generate.prompts import Question
from tests.evaluate.generate.questions import answer_of, random_questions


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
