"""What holds for every test: it reads and writes nothing outside folders of its own, and has one thread."""

import os
import tempfile
from collections.abc import Iterator

import pytest

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
        # hubs are made up in tests, so there is no looking for the real one; test_network has it looked for
        patch.setattr("simpo_cli.data.hub.hub_answers", lambda: True)
        yield


@pytest.fixture(autouse=True)
def _working_directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one: what lies where the tests are started, such as runs/demo after `make demo`, must not decide one."""
    monkeypatch.chdir(tmp_path_factory.mktemp("working-directory"))
