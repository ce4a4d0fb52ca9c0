"""Answers on a run's page and on the screen: numbers with intervals, who was preferred, a few answers to read."""

import csv
import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from simpo_cli.errors import ExitCode
from simpo_cli.evaluate.generate.blind import SHEET
from simpo_cli.evaluate.generate.folder import AnswerFolder
from simpo_cli.evaluate.generate.measures import answers_document
from simpo_cli.report.console import make_console
from simpo_cli.report.eval_view import print_answers
from simpo_cli.report.run_page import write_run_report
from tests.cli.test_help import imported_by
from tests.report.made_answers import MANIFEST, QUESTIONS, write_answers, write_verdicts
from tests.report.made_run import outcome, write_run
from tests.report.parsed_page import Page, require_stands_alone
from tests.report.test_run_page import HOSTILE, VISIBLE


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", outcome=outcome((0.3, 0.2, 0.4), 0.001), steps=0)


def panel(run: Path, name: str = "answers") -> tuple[Page, str]:
    """The page taken apart, and the text of a panel on one line."""
    page = Page(write_run_report(run).read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.text).replace("\u00a0", " ").split())
    panels = text.split(" What it answers ")[1].split(" Where every record went ")[0]
    return page, panels[panels.index(f"{name} ") + len(f"{name} ") :]


def test_the_numbers_are_those_of_the_command(run: Path) -> None:
    write_answers(run / "answers")
    page, text = panel(run)
    require_stands_alone(page.raw)
    assert text.startswith("40 prompts of held.jsonl, at most 64 new tokens, by transformers 5.0 greedy base trained")
    greedy, sampled = text.split("sampled at temperature 0.7")
    for mode in (greedy, sampled):
        assert "tokens 14.0 13.5 to 14.5 22.0 21.5 to 22.5 × 1.57 1.55 to 1.59" in mode
        assert "no end token 0.0 % 0.0 to 8.8 5.0 % 1.4 to 16.5 +5.0 -3.5 to +13.0" in mode
        assert "repeated-4 0.0 % no interval 0.0 % no interval +0.0 no interval" in mode
        assert "distinct-1 0." in mode
    assert "Base is org/smol, trained is runs/mine/model." in sampled
    assert "Left out: 3 asked already." in sampled
    assert "judged by" not in text


def test_a_few_answers_are_drawn_by_the_seed(run: Path) -> None:
    write_answers(run / "answers")
    write_answers(run / "answers-again", decoding={**MANIFEST["decoding"], "seed": 7})
    drawn = {}
    for name, seed in (("answers", 42), ("answers-again", 7)):
        _, text = panel(run, name)
        told = text.split(" answers-again ")[0].split("drawn by the seed ")[1]
        digests = {one.key: hashlib.sha256(f"shown {seed} {one.key}".encode()).hexdigest() for one in QUESTIONS}
        first = sorted(range(len(QUESTIONS)), key=lambda i, digests=digests: digests[QUESTIONS[i].key])[:4]
        drawn[name] = first
        shown = [f"question {i}? base base {i + 11 + i % 5} trained trained {i + 19 + i % 5}" for i in first]
        assert told.strip() == " ".join(shown)
    assert drawn["answers"] != drawn["answers-again"]


def test_who_was_preferred_by_judges_and_by_people(run: Path) -> None:
    folder = write_answers(run / "answers")
    write_verdicts(folder, "tiny-judge", wins=30)
    rows = list(csv.reader(io.StringIO((folder.path / SHEET).read_text(encoding="utf-8-sig"), newline="")))
    for row in rows[1:31]:
        row[1] = "A" if row[3].startswith("trained") else "B"
    filled = io.StringIO()
    csv.writer(filled).writerows(rows)
    (folder.path / SHEET).write_text(filled.getvalue(), encoding="utf-8", newline="")
    _, text = panel(run)
    judged = re.search(r"judged by tiny-judge at http://localhost:1/v1 trained wins 75.0 % (\S+) to (\S+), n 80", text)
    assert judged is not None
    wilson = stats.binomtest(30, 40).proportion_ci(method="wilson")  # both orders of a prompt are one sample
    assert [float(end) for end in judged.groups()] == pytest.approx([100 * wilson.low, 100 * wilson.high], abs=1.0)
    assert "same verdict in both orders 100.0 % 91.2 to 100.0, n 40" in text
    assert "40 of 40 prompts have a verdict in both orders." in text
    assert "judged by people trained wins 100.0 % 88.6 to 100.0, n 30" in text


def test_foreign_text_is_never_markup(run: Path) -> None:
    models = {"base": {"name": "b", "path": HOSTILE}, "trained": {"name": "t", "path": HOSTILE}}
    write_answers(run / "answers", said=f"{HOSTILE} {{side}}", models=models)
    page, text = panel(run)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert text.count(VISIBLE) == 2 + 2 * 4
    assert not any(letter in page.raw for letter in "\x1b\u202e")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("unfinished", "lacks 1 of 40 answers (trained, sampled). Run simpo eval --generate again with the same"),
        ("damaged", "base.greedy.jsonl:2: is no line of this file"),
        ("another version", "cannot be read as a folder of answers: another version wrote it."),
    ],
)
def test_answers_that_are_not_whole_never_cost_the_page(run: Path, damage: str, said: str) -> None:
    folder = write_answers(run / "answers")
    match damage:
        case "unfinished":
            file = folder.file("trained", "sampled")
            file.write_bytes(file.read_bytes()[:-5])
        case "damaged":
            file = folder.file("base", "greedy")
            file.write_text(file.read_text(encoding="utf-8").replace("\n", "\n!\n", 1), encoding="utf-8")
        case _:
            file = run / "answers" / "manifest.json"
            file.write_text(file.read_text(encoding="utf-8").replace('"schema_version": 1', '"schema_version": 9'))
    page, text = panel(run)
    assert said in text
    assert "Held-out accuracy rose 30.0 points" in "".join(page.text).replace("\u00a0", " ")


def test_answers_of_before_the_run_was_resumed_are_called_that(tmp_path: Path) -> None:
    entry: dict[str, Any] = {"command": "simpo", "from_step": 3, "not_bit_exact": []}
    for name, year, is_old in (("later", 2026, True), ("before", 2025, False)):
        at = f"{year}-01-02T05:00:00+00:00"
        run = write_run(tmp_path / name, outcome=outcome((0.3, 0.2, 0.4), 0.001), resumed=[{**entry, "at": at}])
        write_answers(run / "answers")
        made = 1_760_000_000  # 9 October 2025
        os.utime(run / "answers" / "manifest.json", (made, made))
        assert ("resumed after these answers were made" in panel(run)[1]) == is_old


def test_folders_of_other_things_are_left_alone(run: Path) -> None:
    (run / "other").mkdir()
    (run / "other" / "manifest.json").write_text("{}", encoding="utf-8")
    AnswerFolder.make(run / "begun", MANIFEST, QUESTIONS)  # nothing is answered yet
    page = Page(write_run_report(run).read_text(encoding="utf-8"))
    assert sum("What it answers" in text for text in page.text) == 1


def test_long_answers_stay_small(run: Path) -> None:
    for number in range(5):
        write_answers(run / f"answers-{number}", said="<" * 20_000 + "{side} {last}")
    assert write_run_report(run).stat().st_size < 2_000_000


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
