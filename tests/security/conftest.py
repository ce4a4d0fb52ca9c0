"""A folder to work in with a tiny model, pairs and a recipe; and the command line."""

from pathlib import Path

import pytest

from simpo_cli.evaluate import answers
from tests.cli.seen import Simpo, typed, write_run_recipe


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with run.yaml and prefs.jsonl, which is the current one, and a cache of its own."""
    write_run_recipe(tmp_path, "tried", tiny_folder, "  max_steps: 2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIMPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(answers, "_MAX_NEW_TOKENS", 3)  # a random model never stops
    return tmp_path


@pytest.fixture
def simpo(place: Path, capfd: pytest.CaptureFixture[str]) -> Simpo:
    """Types a command in that folder, and gives what it left: exit code, stdout, stderr."""
    assert Path.cwd() == place
    return typed(capfd)
