"""`--quick`: a smoke run is evaluated nowhere, says so everywhere, and invents no number."""

import json
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.formatting import Cell
from simpo_cli.report.run_files import read_run
from simpo_cli.report.run_page import write_run_report
from simpo_cli.report.verdict import verdict
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
