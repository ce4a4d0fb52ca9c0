"""Answers that the embedded world checks, before and after: against plain transformers, and of a resumed run."""

import gzip
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from simpo_cli.builtin import guide_model_dir, guide_pairs
from simpo_cli.builtin.corpus import check_answer
from simpo_cli.evaluate import answers
from simpo_cli.report.run_files import read_run
from simpo_cli.report.run_page import write_run_report
from simpo_cli.report.verdict import verdict
from simpo_cli.train import build, saving, session
from tests.train.runs import Runs, guide_runs, rows

WHOLE = ("train.max_steps=4", "data.train=[{path: builtin:guide, max_pairs: 48}]", "data.holdout=32")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A run that nobody stopped, with answers as long as the model makes them, and room for others beside it."""
    runs = guide_runs(tmp_path_factory.mktemp("whole"))
    runs.short_answers = False
    runs.train("unbroken", *WHOLE)
    return runs


def _said_by(folder: Path, questions: list[list[dict[str, str]]]) -> list[tuple[str, str]]:
    """Each question with the greedy answer to it alone, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).float()
    said = []
    for turns in questions:
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        ids = model.generate(**prompt, max_new_tokens=64, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        said.append((turns[-1]["content"], tokenizer.decode(ids, skip_special_tokens=True).strip()))
    return said


def _held_out(run: Path) -> list[list[dict[str, str]]]:
    """The prompts of the pairs that a run held out, found again by their places."""
    with gzip.open(guide_pairs("train"), "rt", encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    places = (int(row["where"].rsplit(":", 1)[1]) for row in rows(run / "evals-pairs.jsonl"))
    return [pairs[place - 1]["prompt"] for place in places]


def test_a_run_says_what_its_model_answered_before_and_after(whole: Runs) -> None:
    run, checked = whole.folder / "unbroken", whole.receipt("unbroken")["outcome"]["checked"]
    asked = _held_out(run)
    assert checked["prompts"] == len(asked) == 32
    for side, folder in (("before", guide_model_dir()), ("after", run / "model")):
        found = [check_answer(question, text) for question, text in _said_by(folder, asked)]
        parts = [one.parts for one in found if one is not None]
        assert len(parts) == 32
        assert checked["exact"][side]["value"] == sum(one.exact for one in found if one is not None) / 32
        assert checked["parts"][side]["value"] == pytest.approx(sum(parts) / 32)
        assert checked["ended"][side]["value"] == 1.0
    assert 0 < checked["parts"]["before"]["value"] < 1
    shown = f"{100 * checked['exact']['after']['value']:.1f} %"
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    page = write_run_report(run).read_text(encoding="utf-8")
    for text in (card, page, verdict(read_run(run))):
        assert "Wholly right answers" in text
        assert shown in text


def test_a_resumed_run_has_the_same_numbers_and_asks_the_start_model_once(
    whole: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def counted(place: str) -> Any:
        def call(*given: Any) -> Any:
            calls[place] += 1
            return answers.check_answers(*given)

        return call

    monkeypatch.setattr(session, "check_answers", counted("first start"))
    monkeypatch.setattr(build, "check_answers", counted("resume"))
    whole.cut("cut", *WHOLE, step=2)
    memory = whole.train("cut", *WHOLE, resume=True)
    whole.require_same("cut", "unbroken")
    assert memory.outcome is not None
    exact, _, parts, _ = [row for row in memory.outcome.table.rows if "answers" in row.label or "gain" in row.label][1:]
    assert (exact.label, parts.label) == ("wholly right answers", "right parts of answers")
    checked = whole.receipt("cut")["outcome"]["checked"]
    for row, key in ((exact, "exact"), (parts, "parts")):
        values = [f"{100 * checked[key][when]['value']:.1f} %" for when in ("before", "after")]
        assert [cell.text for cell in row.cells] == values
    assert exact.remark == "greedy, to 32 held-out prompts"
    assert calls == {"first start": 1}


def test_a_checkpoint_of_before_answers_were_checked_is_resumed_and_the_start_model_answers_anew(
    whole: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def of_then(content: Any) -> dict[str, Any]:
            return {name: value for name, value in asdict(content).items() if name != "checked_before"}

        patch.setattr(saving, "asdict", of_then)
        whole.cut("old", *WHOLE, step=3)
    newest = max((whole.folder / "old" / "checkpoints").glob("step-*"))
    assert "checked_before" not in json.loads((newest / "progress.json").read_text(encoding="utf-8"))
    assert whole.train("old", *WHOLE, resume=True).first_step == 2
    whole.require_same("old", "unbroken")


@pytest.mark.parametrize(("fixture", "quick"), [("tiny", False), ("guide", True)])
def test_other_held_out_pairs_and_a_quick_run_have_none(
    fixture: str, quick: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: Runs = request.getfixturevalue(fixture)
    asked: list[int] = []
    generate = answers.generate

    def counted(policy: Any, questions: Any, *given: Any, **named: Any) -> Any:
        asked.append(len(questions))
        return generate(policy, questions, *given, **named)

    monkeypatch.setattr(answers, "generate", counted)
    memory = runs.train("run", "train.max_steps=1", quick=quick)
    assert "checked" not in runs.receipt("run")["outcome"]
    assert memory.outcome is not None
    assert not [row for row in memory.outcome.table.rows if "answers" in row.label]
    assert set(asked) == (set() if quick else {1})  # the probe prompts of the tiny run, one by one
