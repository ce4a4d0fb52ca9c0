"""The fixture that writes files of preference pairs."""

from functools import partial
from pathlib import Path

import pytest

from tests.data.pair_files import Write, write_pairs


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file and return its path: bytes and text as they are, a list of records by the name's suffix."""
    return partial(write_pairs, tmp_path)
