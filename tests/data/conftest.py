"""Files of preference pairs, and tokenizers to encode them with."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.data.pair_files import Write, write_pairs

if TYPE_CHECKING:
    from tests.data.encode_cases import Case


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file and return its path: bytes and text as they are, a list of records by the name's suffix."""
    return partial(write_pairs, tmp_path)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> "Callable[[str], Case]":
    """A family of tokenizers by its name, saved once for the tests of a file."""
    from tests.data.encode_cases import FAMILIES, case_of  # imports transformers, which few tests need

    made: dict[str, Case] = {}

    def get(name: str) -> "Case":
        if name not in made:
            made[name] = case_of(FAMILIES[name], tmp_path_factory.mktemp(name), name)
        return made[name]

    return get
