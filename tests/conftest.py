"""What holds for every test: none reads or writes the cache of the person who runs them, and each has one thread."""

import os
from collections.abc import Iterator

import pytest

# Before anything imports torch, and for the processes that tests start: tiny products gain nothing from threads, and
# workers side by side lose much by them, as threads that wait for work keep a processor busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMPO_CACHE", str(tmp_path_factory.mktemp("cache")))
        # hubs are made up in tests, so there is no looking for the real one; test_network has it looked for
        patch.setattr("simpo_cli.data.network.hub_answers", lambda: True)
        yield
