"""`simpo export` and `simpo report` as a shell sees them: refusals before torch, and a page."""

import json
from pathlib import Path

import pytest

from simpo_cli.cli.main import run as simpo
from simpo_cli.errors import ExitCode
from tests.report.made_run import eval_row, outcome, receipt_of, write_run


def _run_folder(folder: Path, *files: str) -> Path:
    for name in ("run.json", *files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(receipt_of()) if name == "run.json" else "{}", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("files", "args", "code", "said"),
    [
        (["model/adapter_config.json"], [], ExitCode.USAGE, "Add --merge to merge adapters, or --push REPO"),
        ([], ["--merge"], ExitCode.ENVIRONMENT, "has no model yet"),
        (["model/config.json"], ["--merge"], ExitCode.USAGE, "trained all weights"),
        (["model/adapter_config.json", "merged/config.json"], ["--merge"], ExitCode.USAGE, "exists already"),
        (["model/adapter_config.json"], ["--merge", "--dtype", "int8"], ExitCode.USAGE, "int8"),
    ],
)
def test_what_cannot_be_exported_says_why(
    files: list[str], args: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simpo(["export", str(_run_folder(tmp_path / "run", *files)), *args]) == code
    assert said in capsys.readouterr().err


def test_what_is_no_run_is_refused_whatever_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "my.yaml"
    recipe.write_text("name: my\n", encoding="utf-8")
    assert simpo(["export", str(recipe)]) == ExitCode.USAGE
    assert f"A run is made by: simpo train {recipe}" in " ".join(capsys.readouterr().err.split())
    assert simpo(["export", str(tmp_path), "--merge"]) == ExitCode.USAGE
    assert "is not a run" in capsys.readouterr().err


def test_a_report_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", outcome=outcome((0.3, 0.2, 0.4), 0.001), evals=[eval_row(0, 0.5)])
    assert simpo(["report", str(run)]) == ExitCode.DONE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"report  {run / 'report.html'}\n"
    assert "Held-out accuracy rose 30.0 points" in (run / "report.html").read_text(encoding="utf-8").replace(
        "\u00a0", " "
    )


def test_what_is_no_run_is_two_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simpo(["report", str(tmp_path)]) == ExitCode.USAGE
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"Error: {tmp_path} is not a run."
    assert second.startswith("  Name the folder of a run")
    (tmp_path / "run.json").write_text(json.dumps({"status": "done"}))
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    assert simpo(["report", str(tmp_path)]) == ExitCode.USAGE
    assert f"{tmp_path / 'run.json'}: is not what a run writes: started: is missing." in capsys.readouterr().err
