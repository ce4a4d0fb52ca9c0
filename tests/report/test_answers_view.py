"""Answers on the screen: every number with its interval, on wide and narrow terminals, and without torch."""

import csv
import io
from pathlib import Path

import pytest

from simpo_cli.errors import ExitCode
from simpo_cli.evaluate.generate.blind import SHEET
from simpo_cli.evaluate.generate.measures import answers_document
from simpo_cli.report.answers_view import print_answers
from simpo_cli.report.console import make_console
from tests.cli.test_help import imported_by
from tests.report.made_answers import write_answers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_answers(tmp_path / "answers").path


def shown(folder: Path, width: int) -> list[str]:
    stream = io.StringIO()
    print_answers(make_console(stream, width=width), answers_document(folder))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [100, 80])
def test_a_line_a_measure(folder: Path, width: int) -> None:
    lines = shown(folder, width)
    assert lines[0] == "answers of mine and smol"
    assert "40 prompts of held.jsonl" in lines[1]
    (ends, sampled_ends) = [line.split() for line in lines if line.startswith("  no end token")]
    assert " ".join(ends) == "no end token 0.0 % (0.0 to 8.8) 5.0 % (1.4 to 16.5) +5.0 (-3.5 to +13.0)"
    assert ends == sampled_ends
    (tokens, _) = [" ".join(line.split()) for line in lines if line.startswith("  tokens")]
    assert tokens.startswith("tokens 14.0 (13.5 to 14.5) 22.0 (21.5 to 22.5) × 1.57 (1.55 to 1.59)")
    assert all(len(line) <= width for line in lines if str(folder.parent) not in line)
    assert "Left out: 3 asked already." in lines
    assert any(line.startswith("to judge") for line in lines)


def test_narrow_terminals_get_a_line_a_model(folder: Path) -> None:
    lines = shown(folder, 50)
    place = lines.index("  no end token")
    assert lines[place + 1 : place + 4] == [
        "    base        0.0 % (0.0 to 8.8)",
        "    trained     5.0 % (1.4 to 16.5)",
        "    difference  +5.0 (-3.5 to +13.0)",
    ]


def test_what_people_said_is_shown_once_they_did(folder: Path) -> None:
    text = (folder / SHEET).read_text(encoding="utf-8-sig")
    rows = list(csv.reader(io.StringIO(text, newline="")))
    for row in rows[1:31]:
        row[1] = "A" if row[3].startswith("trained") else "B"
    filled = io.StringIO()
    csv.writer(filled).writerows(rows)
    (folder / SHEET).write_text(filled.getvalue(), encoding="utf-8", newline="")
    lines = shown(folder, 80)
    place = lines.index("judged by people")
    assert lines[place + 1] == "  trained wins   100.0 % (88.6 to 100.0, n 30)"
    assert lines[place + 2] == "30 wins, 0 ties, 0 losses, 10 open; a tie counts one half."


def test_a_folder_is_shown_without_torch(folder: Path) -> None:
    code, imported = imported_by("eval", "answers", cwd=folder.parent)
    assert code == ExitCode.DONE
    assert imported.isdisjoint({"torch", "transformers", "datasets", "accelerate", "peft", "openai"})


@pytest.mark.parametrize("width", [100, 60])
def test_three_answers_side_by_side(tmp_path: Path, width: int) -> None:
    lines = shown(write_answers(tmp_path / "answers", said="{side} {last} " + "word " * 20).path, width)
    quoted = [place for place, line in enumerate(lines) if line.startswith('"')]
    assert len(quoted) == 3
    below = lines[quoted[0] + 1 : quoted[1] - 1]
    if width == 100:
        assert below[0].split() == ["base", "trained"]
        assert below[1].startswith("  base 11 word")
        assert "   trained 19 word" in below[1]
    else:
        assert below[0].startswith("  base     base 11 word")
        assert any(line.startswith("  trained  trained 19 word") for line in below)
    assert all(len(line) <= width for line in below)


def test_an_answer_that_did_not_change_is_shown_once(tmp_path: Path) -> None:
    lines = shown(write_answers(tmp_path / "answers", said="the same").path, 100)
    assert [line for line in lines if line.startswith("  both")] == ["  both     the same"] * 3
