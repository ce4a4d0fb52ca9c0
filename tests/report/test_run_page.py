"""A run's page: what is on it, that it stands alone, and that it comes out of any run; and the answers on it."""

import hashlib
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from simpo_cli.errors import UserError
from simpo_cli.evaluate.generate.folder import AnswerFolder
from simpo_cli.report.page import SHOWN_CHARACTERS
from simpo_cli.report.run_files import read_run
from simpo_cli.report.run_page import run_page, write_run_report
from tests.report.made_answers import MANIFEST, QUESTIONS, fill_in, likes_trained, write_answers, write_verdicts
from tests.report.made_run import RECIPE, checked, eval_row, outcome, write_run
from tests.report.parsed_page import Page, require_stands_alone

HOSTILE = "<script>alert('x')</script><img src=x onerror=y>\"&amp;{{ 7*7 }}\x1b[31m\u202e"
VISIBLE = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
RISE = outcome((0.3, 0.2, 0.4), 0.001)
EVALS = [eval_row(0, 0.5), eval_row(2, 0.6), eval_row(4, 0.8)]


def _page(path: Path, **run: Any) -> tuple[Page, str]:
    """The page taken apart, and its text on one line."""
    written = write_run_report(write_run(path / "run", **run))
    page = Page(written.read_text(encoding="utf-8"))
    return page, " ".join(" ".join(page.text).replace("\u00a0", " ").split())


def _figures(page: Page) -> list[str]:
    return [attributes["aria-label"] or "" for tag, attributes in page.tags if tag == "svg"]


def test_a_finished_run(tmp_path: Path) -> None:
    page, text = _page(tmp_path, outcome=RISE, evals=EVALS, pairs=40)
    assert "Held-out accuracy rose 30.0 points" in text
    assert "accuracy 50.0 % 40.0 to 60.0 80.0 % 75.0 to 85.0" in text
    assert "random baseline 50.0 % the longer response wins 40.0 % 30.0 to 50.0" in text
    assert "chosen longer 20 60.0 % 40.0 to 80.0" in text
    assert "How? before Like that. after Like this." in text
    assert "1,250 read = 1,200 trained + 40 held out + 1 malformed + 9 dropped: identical responses" in text
    assert "prompt, chosen, rejected · 7 prompt cut" in text
    assert "simpo train made-up.yaml" in text
    assert "beta: 2.0" in text
    figures = _figures(page)
    assert [figure.split(".")[0] for figure in figures] == [
        "Loss",
        "Accuracy",
        "Reward margin",
        "Log-probs of training batches",
        "Gradient norm",
        "Learning rate",
        "Tokens a second",
        "Accuracy by length",
        "Drift during the run",
        "Change of the log-probs of the held-out pairs: chosen +0",
        "Margins of the held-out pairs: mean 0",
    ]
    assert figures[0].startswith("Loss. Training: from 1.000 at step 1 to 0.250 at step 4, never under 0.250 or over 1")
    assert "gamma is 1.00" in figures[2]


def test_what_a_rule_says_of_answers_stands_beside_the_scores_and_the_answers(tmp_path: Path) -> None:
    result = {**RISE, "checked": checked(0.25, 0.75, (0.35, 0.62), 0.00002)}
    _, text = _page(tmp_path, outcome=result, evals=EVALS, pairs=40)
    assert (
        "wholly right answers 25.0 % 15.0 to 35.0 75.0 % 65.0 to 85.0 gain, points +50.0 +35.0 to +62.0 "
        "right parts of answers 35.0 % 25.0 to 45.0 75.0 % 65.0 to 85.0"
    ) in text
    assert "are of greedy answers to 40 held-out prompts, which builtin:guide can check" in text
    assert "Of 40 such answers to held-out prompts 25.0 % were wholly right before and 75.0 % after." in text
    broken = {**result, "checked": {**result["checked"], "prompts": -1}}
    with pytest.raises(UserError, match=r"outcome\.checked\.prompts"):
        read_run(write_run(tmp_path / "broken", outcome=broken))


def test_the_histograms_are_of_the_stored_pairs(tmp_path: Path) -> None:
    page, text = _page(tmp_path, outcome=RISE, evals=EVALS, pairs=40)
    rows = [json.loads(line) for line in (tmp_path / "run" / "evals-pairs.jsonl").read_text().splitlines()]
    before = [2.0 * (row["chosen_before"] - row["rejected_before"]) for row in rows]
    after = [2.0 * (row["chosen_after"] - row["rejected_after"]) for row in rows]
    told = _figures(page)[-1]
    assert f"mean {sum(before) / 40:.2f} before and {sum(after) / 40:.2f} after" in told
    past = sum(margin > 1.0 for margin in after) / 40
    assert f"past gamma: 0.0 % before, {100 * past:.1f} % after (n = 40)" in text
    fell = sum(row["chosen_after"] < row["chosen_before"] for row in rows) / 40
    assert f"chosen fell in {100 * fell:.1f} % of the pairs" in text
    equal = [row for row in rows if row["chosen_tokens"] == row["rejected_tokens"]]
    right = sum(row["chosen_after"] > row["rejected_after"] for row in equal)
    ties = sum(row["chosen_after"] == row["rejected_after"] for row in equal)
    assert f"equal length {len(equal)}" in text
    assert f"{100 * (right + ties / 2) / len(equal):.1f} %" in text.split(f"equal length {len(equal)}")[1][:60]


def test_drift_is_of_the_stored_pairs_with_intervals(tmp_path: Path) -> None:
    _, text = _page(tmp_path, outcome=RISE, steps=0, pairs=40)
    rows = [json.loads(line) for line in (tmp_path / "run" / "evals-pairs.jsonl").read_text().splitlines()]
    change = [row["chosen_after"] - row["chosen_before"] for row in rows]
    low, high = stats.t.interval(0.95, 39, loc=sum(change) / 40, scale=stats.sem(change))
    assert f"chosen, nats/token {sum(change) / 40:+.3f} {low:+.3f} to {high:+.3f}" in text
    fell = stats.binomtest(sum(one < 0 for one in change), 40)
    wilson = fell.proportion_ci(method="wilson")
    shown = f"{100 * fell.statistic:.1f} % {100 * wilson.low:.1f} to {100 * wilson.high:.1f}"
    assert f"pairs whose chosen fell {shown}" in text


def test_pairs_to_read_are_shown_with_their_margins(tmp_path: Path) -> None:
    texts = {"prompt": "Why?", "chosen": "So.", "rejected": HOSTILE}
    samples = [{"line": 3, "why": "drawn", **texts}, {"line": 40, "why": "worst", **texts, "chosen": "It fell."}]
    page, text = _page(tmp_path, outcome=RISE, steps=0, pairs=40, samples=samples)
    drawn, worst = text.split("Drawn by the seed")[1].split("Margins that fell most")
    assert "prefs.jsonl:2 margin 0.020 before, 0.460 after, nats a token" in drawn
    assert f"prompt Why? chosen So. rejected {VISIBLE}" in drawn
    assert "prefs.jsonl:39 margin 0.390 before, -0.280 after, nats a token" in worst
    assert "It fell." in worst
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})


def test_the_recipe_says_where_each_value_was_set(tmp_path: Path) -> None:
    origins = {"name": "mine.yaml:1", "loss.beta": "override 2", "model.path": f"{HOSTILE}.yaml:3"}
    _, text = _page(tmp_path, steps=0, recipe_origins=origins)
    table = text.split("key value set in")[1].split("Whatever is not in the table")[0]
    assert table.split() == (
        f"name made-up mine.yaml:1 model.path builtin:guide {VISIBLE}.yaml:3 loss.beta 2.0 override 2".split()
    )
    assert "Every value name: made-up" in text


def test_how_to_do_it_again_is_commands_that_can_be_typed(tmp_path: Path) -> None:
    page, _ = _page(tmp_path / "my runs", outcome=RISE, steps=0)
    run = tmp_path / "my runs" / "run"
    assert [shlex.split(line) for line in next(text for text in page.text if "simpo report" in text).splitlines()] == [
        ["simpo", "train", "made-up.yaml"],
        ["simpo", "train", str(run / "recipe.yaml"), "name=made-up-again", "output_dir=runs/made-up-again"],
        ["simpo", "eval", str(run)],
        ["simpo", "report", str(run)],
    ]


def test_a_run_without_findings_says_that_it_looked(tmp_path: Path) -> None:
    _, text = _page(tmp_path, steps=0, notes=[{"label": "loss", "text": "SimPO"}])
    assert "found no repeats, no contradictions" in text
    _, text = _page(
        tmp_path / "found", steps=0, notes=[{"label": "", "text": "DUP001 7 training pairs occurred before"}]
    )
    assert "found no repeats" not in text
    _, text = _page(tmp_path / "old", steps=0)  # it kept no first screen: nothing is known
    assert "found no repeats" not in text


def test_foreign_text_is_never_markup(tmp_path: Path) -> None:
    result = outcome((0.3, 0.2, 0.4), 0.001)
    result["answers"] = [{"question": HOSTILE, "before": HOSTILE, "after": "x" * 5000}]
    page, text = _page(
        tmp_path,
        outcome=result,
        notes=[{"label": "note", "text": f"note {HOSTILE}"}, {"label": HOSTILE, "text": f"LEN001 {HOSTILE}"}],
        recipe=RECIPE.replace("made-up", json.dumps(HOSTILE)),
        command=f"simpo train {HOSTILE}",
    )
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img", "iframe", "object"})
    assert VISIBLE in text
    assert f"simpo train {VISIBLE}" in text
    assert f"note {VISIBLE}" in text
    assert f"finding LEN001 {VISIBLE}" in text
    assert f"… {5000 - SHOWN_CHARACTERS:,} more characters" in text
    raw = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert not any(letter in raw for letter in "\x1b\u202e")


def test_an_error_of_a_failed_run_is_never_markup(tmp_path: Path) -> None:
    page, text = _page(tmp_path, status="failed", outcome={"error": HOSTILE}, steps=2, evals=EVALS[:1])
    assert f"The run failed after step 2 of 4: {VISIBLE}" in text
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert len(_figures(page)) == 7  # the curves as far as they go; one evaluation shows no drift


def test_the_page_stands_alone(tmp_path: Path) -> None:
    page, _ = _page(tmp_path, outcome=RISE, evals=EVALS, pairs=40)
    require_stands_alone(page.raw)


def test_a_long_run_stays_small(tmp_path: Path) -> None:
    result = outcome((0.3, 0.2, 0.4), 0.001)
    result["answers"] = [{"question": "?" * 50_000, "before": "<" * 50_000, "after": "\x07" * 50_000}] * 10
    notes = [{"label": "note", "text": f"note {number}"} for number in range(500)]
    evals = [eval_row(step, 0.5) for step in range(0, 20_000, 100)]
    page, text = _page(tmp_path, outcome=result, steps=20_000, evals=evals, pairs=3000, notes=notes)
    assert (tmp_path / "run" / "report.html").stat().st_size < 2_000_000
    assert "and 400 more: see notes.jsonl" in text
    assert len(_figures(page)) == 11


@pytest.mark.parametrize(
    ("run", "figures"),
    [
        ({"outcome": {"steps": 4, "seconds": 1.0, "answers": []}}, 7),  # nothing held out
        ({"status": "running", "steps": 0}, 0),
        ({"status": "running", "steps": 1, "evals": EVALS[:1]}, 7),
        ({"status": "stopped", "steps": 1}, 7),
        ({"outcome": RISE, "steps": 1, "evals": EVALS, "pairs": 1}, 11),
        ({"outcome": RISE, "recipe": "name: of another version\nnew_key: 1\n", "evals": EVALS, "pairs": 12}, 10),
    ],
)
def test_any_run_has_a_page(run: dict[str, Any], figures: int, tmp_path: Path) -> None:
    page, _ = _page(tmp_path, **run)
    assert len(_figures(page)) == figures


def test_a_step_that_is_just_being_written_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", status="running", steps=3)
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')
    assert read_run(run).steps_done == 3
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('\n{"step": 5}\n')
    with pytest.raises(UserError, match="is no line of this file: is no JSON") as caught:
        read_run(run)
    assert caught.value.where == f"{run / 'metrics.jsonl'}:4"


def test_notes_that_a_resumed_run_says_again_are_shown_once(tmp_path: Path) -> None:
    note = {"label": "note", "text": "prompts shared"}
    run = read_run(write_run(tmp_path / "run", notes=[note, {"label": "note", "text": "other"}, note]))
    assert [one["text"] for one in run.notes] == ["prompts shared", "other"]


def test_a_run_that_was_gone_on_with_says_from_where(tmp_path: Path) -> None:
    entry = {"at": "2026-01-02T05:00:00+00:00", "command": "simpo", "from_step": 3, "not_bit_exact": ["torch: 1 to 2"]}
    _, text = _page(tmp_path, outcome=RISE, resumed=[entry])
    assert "2026-01-02T05:00:00+00:00, from step 3, not bit-exact from there: torch: 1 to 2" in text


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", outcome=RISE, evals=EVALS, pairs=40))
    made = [run_page(run, now=run.last_written) for _ in range(2)]
    assert made[0] == made[1]


def test_what_is_no_run_and_what_is_no_page_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        write_run_report(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(UserError, match="is not what a run writes"):
        write_run_report(tmp_path)
    run = write_run(tmp_path / "run")
    (run / "report.html").write_text("my thesis")
    with pytest.raises(UserError, match=r"the report .*report.html exists and is not a page of simpo"):
        write_run_report(run)
    assert (run / "report.html").read_text() == "my thesis"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", outcome=RISE, steps=0)


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
    fill_in(folder.path, likes_trained, 30)
    _, text = panel(run)
    judged = re.search(r"judged by tiny-judge at http://localhost:1/v1 trained wins 75.0 % (\S+) to (\S+), n 80", text)
    assert judged is not None
    wilson = stats.binomtest(30, 40).proportion_ci(method="wilson")  # both orders of a prompt are one sample
    assert [float(end) for end in judged.groups()] == pytest.approx([100 * wilson.low, 100 * wilson.high], abs=1.0)
    assert "same verdict in both orders 100.0 % 91.2 to 100.0, n 40" in text
    assert "40 of 40 prompts have a verdict in both orders." in text
    assert "judged by people trained wins 100.0 % 88.6 to 100.0, n 30" in text


def test_answers_are_never_markup(run: Path) -> None:
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
