"""`simpo export`: what it refuses, before torch; and a merge from the command line."""

import json
from pathlib import Path

import pytest

from simpo_cli.cli.main import run as simpo
from simpo_cli.errors import ExitCode
from tests.report.made_run import receipt_of


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


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simpo(["export", str(tmp_path), "--merge"]) == ExitCode.USAGE
    assert "is not a run" in capsys.readouterr().err
