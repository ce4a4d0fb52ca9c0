"""What holds for every test: none reads or writes the cache of the person who runs them."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMPO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
