"""What a run's page shows of the answers in its folder: the numbers, who was preferred, and a few answers to read."""

import csv
import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from simpo_cli.evaluate.generate.blind import SHEET
from simpo_cli.evaluate.generate.folder import AnswerFolder
from simpo_cli.report.run_page import write_run_report
from tests.report.made_answers import MANIFEST, QUESTIONS, write_answers, write_verdicts
from tests.report.made_run import outcome, write_run
from tests.report.parsed_page import Page
from tests.report.stands_alone import require_stands_alone
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
