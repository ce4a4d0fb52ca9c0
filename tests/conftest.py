"""What holds for every test: it reads and writes nothing outside folders of its own, and has one thread."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from simpo_cli.redaction import forget

# Before anything imports torch or the hub's client, and for the processes that tests start. Tiny products gain nothing
# from threads, and workers side by side lose much by them, as threads that wait for work keep a processor busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
_HOME = tempfile.TemporaryDirectory(prefix="simpo-tests-", ignore_cleanup_errors=True)
for _name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME"):  # caches and settings of whoever runs the tests
    os.environ[_name] = _HOME.name


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMPO_CACHE", str(tmp_path_factory.mktemp("cache")))
        # hubs are made up in tests, so there is no looking for the real one; test_hub has it looked for
        patch.setattr("simpo_cli.data.hub.hub_answers", lambda: True)
        yield


@pytest.fixture(autouse=True)
def _working_directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one: what lies where the tests are started, such as runs/demo after `make demo`, must not decide one."""
    monkeypatch.chdir(tmp_path_factory.mktemp("working-directory"))


@pytest.fixture(autouse=True)
def _no_accelerator_of_another_test() -> None:
    """accelerate has one precision in a process; a test that opens one by itself starts from none."""
    if (state := sys.modules.get("accelerate.state")) is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _no_environment_of_another_test() -> None:
    """What a recipe of another test took from the environment is redacted for the rest of a process."""
    forget()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights in float32."""
    from tests.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def prefs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pairs over thirty prompts."""
    from tests.train.runs import write_prefs

    return write_prefs(tmp_path_factory.mktemp("data") / "prefs.jsonl", pairs=40, prompts=30)
