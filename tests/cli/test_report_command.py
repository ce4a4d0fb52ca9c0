"""`simpo report` as a shell sees it: what it says, what it writes, and that it never loads torch."""

import json
from pathlib import Path

import pytest

from simpo_cli.cli import main as cli
from simpo_cli.errors import ExitCode
from tests.cli.test_help import imported_by
from tests.report.made_run import eval_row, outcome, write_run


def test_a_report_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", outcome=outcome((0.3, 0.2, 0.4), 0.001), evals=[eval_row(0, 0.5)])
    assert cli.run(["report", str(run)]) == ExitCode.DONE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"report  {run / 'report.html'}\n"
    assert "Held-out accuracy rose 30.0 points" in (run / "report.html").read_text(encoding="utf-8").replace(
        "\u00a0", " "
    )


def test_it_never_loads_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "run", outcome=outcome((0.3, 0.2, 0.4), 0.001), evals=[eval_row(0, 0.5)], pairs=30)
    code, imported = imported_by("report", "run", cwd=tmp_path)
    assert code == ExitCode.DONE
    assert imported.isdisjoint({"torch", "transformers", "datasets", "accelerate", "peft"})


def test_what_is_no_run_is_two_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["report", str(tmp_path)]) == ExitCode.USAGE
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"Error: {tmp_path} is not a run."
    assert second.startswith("  Name the folder of a run")
    (tmp_path / "run.json").write_text(json.dumps({"status": "done"}))
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    assert cli.run(["report", str(tmp_path)]) == ExitCode.USAGE
    assert f"{tmp_path / 'run.json'}: is not what a run writes: started: is missing." in capsys.readouterr().err
