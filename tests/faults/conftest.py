"""One server of children for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.faults.children import Children, make_place


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Children]:
    with Children(make_place(tmp_path_factory.mktemp("faults"))) as children:
        yield children
