"""`--quick`: a smoke run is evaluated nowhere and invents no number; and the account of the records adds up."""

import json
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.data.prepare import make_plan, prepare_data
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.formatting import Cell
from simpo_cli.recipe import compose
from simpo_cli.report.run_files import read_run
from simpo_cli.report.run_page import write_run_report
from simpo_cli.report.verdict import verdict
from simpo_cli.run.receipt import ledger, ledgers
from simpo_cli.run.verify import verify_run
from simpo_cli.table import Row
from tests.train.conftest import Memory
from tests.train.guide import train_tiny


def _train(tmp_path: Path, tiny_folder: Path, prefs: Path, *more: str, **options: Any) -> Memory:
    memory = Memory()
    train_tiny(tmp_path, tiny_folder, prefs, "train.max_steps=2", *more, observer=memory, **options)
    return memory


def test_nothing_is_evaluated_and_that_is_said_everywhere(tmp_path: Path, tiny_folder: Path, prefs: Path) -> None:
    seen = _train(tmp_path, tiny_folder, prefs, "eval.every=1", quick=True)
    run = tmp_path / "run"
    assert seen.header is not None
    assert "no evaluation and no probe answers" in {line.label: line.text for line in seen.header.lines}["quick"]
    assert seen.evals == []
    assert seen.outcome is not None
    assert (seen.outcome.answers, seen.outcome.table.rows[0]) == (
        (),
        Row("accuracy", (Cell(""), Cell("not measured")), "--quick"),
    )
    receipt = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert receipt["quick"] is True
    assert receipt["outcome"]["not_measured"] == "--quick"
    assert receipt["outcome"]["answers"] == []
    assert not {"before", "after", "difference"} & receipt["outcome"].keys()
    assert receipt["data"]["train"]["records"]["held_out"] > 0  # they are not trained on
    for name in ("evals.jsonl", "evals-pairs.jsonl", "answers.jsonl"):
        assert not (run / name).exists()
    assert "Not measured: --quick." in (run / "model" / "README.md").read_text(encoding="utf-8")
    assert verdict(read_run(run)).startswith("Not measured: --quick.")
    assert "Not measured: --quick." in write_run_report(run).read_text(encoding="utf-8")
    verify_run(run).require_whole()


def test_a_run_that_began_so_stays_so_and_another_may_become_so(tmp_path: Path, tiny_folder: Path, prefs: Path) -> None:
    _train(tmp_path, tiny_folder, prefs, quick=True)
    longer = _train(tmp_path, tiny_folder, prefs, "train.max_steps=3", resume=True)
    assert longer.evals == []
    assert longer.outcome is not None
    assert longer.outcome.table.rows[0].cells[1].text == "not measured"

    _train(tmp_path, tiny_folder, prefs, fresh=True)
    hurried = _train(tmp_path, tiny_folder, prefs, "train.max_steps=3", resume=True, quick=True)
    assert hurried.evals == []
    assert hurried.outcome is not None
    assert hurried.outcome.table.rows[0].cells[1].text == "not measured"


def test_the_best_checkpoint_cannot_be_kept_unseen(tmp_path: Path, tiny_folder: Path, prefs: Path) -> None:
    with pytest.raises(UserError, match="checkpoint.best keeps the checkpoint") as refused:
        _train(tmp_path, tiny_folder, prefs, "checkpoint.best=true", "eval.every=1", quick=True)
    assert refused.value.exit_code == ExitCode.USAGE
    assert not (tmp_path / "run").exists()


def _write(file: Path, count: int) -> None:
    rows = [{"prompt": f"Question {i}?", "chosen": f"Yes {i}, do.", "rejected": f"No {i}!"} for i in range(count)]
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[5]["chosen"] = ""
    lines = [json.dumps(row) for row in rows]
    lines[7] = '{"prompt": "broken'
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize(("sources", "repeated"), [("a", 0), ("a, b", 0), ("a twice", 27)])
@pytest.mark.parametrize("own_eval", [False, True])
def test_every_record_is_somewhere(
    tmp_path: Path, tiny_folder: Path, sources: str, repeated: int, own_eval: bool
) -> None:
    for name in ("a", "b", "e"):
        _write(tmp_path / f"{name}.jsonl", 30)
    named = {
        "a": f"{tmp_path}/a.jsonl",
        "a, b": f"[{{path: {tmp_path}/a.jsonl}}, {{path: {tmp_path}/b.jsonl}}]",
        "a twice": f"[{{path: {tmp_path}/a.jsonl, repeat: 2}}]",
    }[sources]
    (tmp_path / "run.yaml").write_text("name: x\n", encoding="utf-8")
    recipe = compose(
        str(tmp_path / "run.yaml"),
        [
            f"model.path={tiny_folder}",
            f"data.train={named}",
            "data.on_bad_record=skip",
            "data.min_response_tokens=3",
            *([f"data.eval={tmp_path}/e.jsonl"] if own_eval else ["data.holdout=6"]),
            "train.pairs_per_step=8",
            "train.max_steps=2",
        ],
    ).recipe
    data = prepare_data(recipe)
    plan = make_plan(recipe, len(data.train))
    for steps, trained in ((0, 0), (1, 8), (2, 16)):
        accounts = ledgers(data, plan, steps)
        account = accounts["train"]
        assert account["read"] == (60 if sources == "a, b" else 30)
        assert account["repeated"] == repeated
        assert account["trained"] == trained
        assert account["held_out"] == (0 if own_eval else len(data.held_out))
        assert account["refused"] == (2 if sources == "a, b" else 1)
        assert sum(account["dropped"].values()) >= 2
        assert account["trained"] + account["not_reached"] == len(data.train)
        account = accounts["eval"]
        assert (account is not None) == own_eval
        assert account is None or [account[name] for name in ("read", "held_out", "refused")] == [30, 27, 1]
    with pytest.raises(AssertionError, match=r"\d+ records read, repetitions counted, and \d+ accounted for"):
        ledger(data.train_source, trained=1)
