"""A sheet that people fill in: blind, safe in a spreadsheet, and read back as they meant it."""

import csv
import io
import json
from pathlib import Path

import pytest

from simpo_cli.errors import UserError
from simpo_cli.evaluate.generate.blind import KEY, SHEET, read_verdicts, write_blind
from tests.evaluate.generate.questions import answer_of, random_questions

QUESTIONS = random_questions(60, seed=1)
BASE = [answer_of(question, f"base says {i}") for i, question in enumerate(QUESTIONS)]
TRAINED = [answer_of(question, f"trained says {i}") for i, question in enumerate(QUESTIONS)]


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / SHEET).read_text(encoding="utf-8-sig"), newline="")))


def fill(folder: Path, verdict_of: dict[str, str], *, separator: str = ",") -> None:
    rows = rows_of(folder)
    filled = io.StringIO()
    writer = csv.DictWriter(filled, ["id", "verdict", "prompt", "answer_a", "answer_b"], delimiter=separator)
    writer.writeheader()
    writer.writerows({**row, "verdict": verdict_of.get(row["id"], "")} for row in rows)
    (folder / SHEET).write_text(filled.getvalue(), encoding="utf-8", newline="")


def test_the_order_is_drawn_and_the_key_tells_it(tmp_path: Path) -> None:
    write_blind(tmp_path, QUESTIONS, BASE, TRAINED, seed=7)
    first = json.loads((tmp_path / KEY).read_text(encoding="utf-8"))["answer_a"]
    rows = rows_of(tmp_path)
    assert [row["id"] for row in rows] == [question.key for question in QUESTIONS]
    for row in rows:
        a, b = ("base", "trained") if first[row["id"]] == "base" else ("trained", "base")
        assert row["answer_a"].startswith(f"{a} says")
        assert row["answer_b"].startswith(f"{b} says")
    assert 15 < sum(side == "base" for side in first.values()) < 45
    write_blind(tmp_path, QUESTIONS, BASE, TRAINED, seed=8)
    assert json.loads((tmp_path / KEY).read_text(encoding="utf-8"))["answer_a"] != first


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_verdicts_are_read_as_they_were_meant(tmp_path: Path, separator: str) -> None:
    write_blind(tmp_path, QUESTIONS, BASE, TRAINED, seed=7)
    assert read_verdicts(tmp_path) is None, "nothing is filled in yet"
    # one who likes the trained model 30 times, the base 9 times, neither 6 times
    said = {}
    for i, row in enumerate(rows_of(tmp_path)[:45]):
        place = "A" if row["answer_a"].startswith("trained") else "B"
        other = "b" if place == "A" else " a "
        said[row["id"]] = place if i < 30 else other if i < 39 else "Tie"
    fill(tmp_path, said, separator=separator)
    verdicts = read_verdicts(tmp_path)
    assert verdicts is not None
    assert {name: verdicts[name] for name in ("wins", "ties", "losses", "open")} == {
        "wins": 30,
        "ties": 6,
        "losses": 9,
        "open": 15,
    }
    assert verdicts["win_rate"]["value"] == pytest.approx(33 / 45)
    assert verdicts["win_rate"]["n"] == 45
    low, high = verdicts["win_rate"]["ci"]
    assert 0.5 < low < 33 / 45 < high < 0.9


def test_a_sheet_with_verdicts_is_never_written_over(tmp_path: Path) -> None:
    write_blind(tmp_path, QUESTIONS, BASE, TRAINED, seed=7)
    fill(tmp_path, {QUESTIONS[0].key: "A"})
    before = (tmp_path / SHEET).read_bytes(), (tmp_path / KEY).read_bytes()
    write_blind(tmp_path, QUESTIONS, BASE, TRAINED, seed=8)
    assert before == ((tmp_path / SHEET).read_bytes(), (tmp_path / KEY).read_bytes())


def test_equal_answers_are_not_put_before_people(tmp_path: Path) -> None:
    write_blind(tmp_path, QUESTIONS[:2], BASE[:2], [BASE[0], TRAINED[1]], seed=7)
    assert [row["id"] for row in rows_of(tmp_path)] == [QUESTIONS[1].key]


def test_a_spreadsheet_shows_and_does_not_compute(tmp_path: Path) -> None:
    text = '=HYPERLINK("http://x","y")'
    write_blind(tmp_path, QUESTIONS[:1], [answer_of(QUESTIONS[0], text)], TRAINED[:1], seed=7)
    (row,) = rows_of(tmp_path)
    assert f"'{text}" in (row["answer_a"], row["answer_b"])


def test_what_is_wrong_with_a_sheet_is_said(tmp_path: Path) -> None:
    write_blind(tmp_path, QUESTIONS[:3], BASE[:3], TRAINED[:3], seed=7)
    fill(tmp_path, {QUESTIONS[1].key: "maybe"})
    with pytest.raises(UserError, match=r"row 2: the verdict is 'maybe'"):
        read_verdicts(tmp_path)
    fill(tmp_path, {QUESTIONS[1].key: "A"})
    (tmp_path / KEY).write_text('{"answer_a": {}}')
    with pytest.raises(UserError, match="is not in side_by_side_key.json"):
        read_verdicts(tmp_path)
    (tmp_path / KEY).unlink()
    with pytest.raises(UserError, match="nobody can tell what A and B were|cannot be read"):
        read_verdicts(tmp_path)
    (tmp_path / SHEET).write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="lacks the columns id and verdict"):
        read_verdicts(tmp_path)
