"""A folder to work in with a tiny model, pairs and a recipe; and the command line."""

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from simpo_cli.cli.main import run
from simpo_cli.evaluate import answers
from tests.cli.seen import Seen, Simpo, write_run_recipe
from tests.tiny import save_tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights in float32; tests copy it before they change it."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with run.yaml and prefs.jsonl, which is the current one, and a cache of its own."""
    write_run_recipe(tmp_path, "tried", tiny_folder, "  max_steps: 2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIMPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(answers, "_MAX_NEW_TOKENS", 3)  # a random model never stops
    AcceleratorState._reset_state(reset_partial_state=True)
    return tmp_path


@pytest.fixture
def simpo(place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Simpo:
    """Types a command in that folder, and gives what it left: exit code, stdout, stderr."""

    assert Path.cwd() == place

    def type_in(*words: str) -> Seen:
        monkeypatch.setattr("sys.argv", ["simpo", *words])
        AcceleratorState._reset_state(reset_partial_state=True)
        code = run(words)
        return Seen(code, *capfd.readouterr())

    return type_in
