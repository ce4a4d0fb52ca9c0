"""The folder of answers after damage: what is lost is said, or made again."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from simpo_cli.errors import UserError
from simpo_cli.evaluate.generate.folder import MANIFEST, Answer, AnswerFolder, is_answers
from simpo_cli.evaluate.generate.prompts import Question
from tests.evaluate.generate.questions import random_questions

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
