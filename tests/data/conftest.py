"""Files of preference pairs, and tokenizers to encode them with."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from simpo_cli.data.tokenizer import TextTokenizer, load_tokenizer
from tests.data.pair_files import Write, write_pairs

if TYPE_CHECKING:
    from tests.data.encode_cases import Cases


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file and return its path: bytes and text as they are, a list of records by the name's suffix."""
    return functools.partial(write_pairs, tmp_path)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> "Cases":
    """A family of tokenizers by its name, saved once for the tests of a file."""
    from tests.data.encode_cases import case_of  # imports transformers, which few tests need

    return functools.cache(lambda name: case_of(name, tmp_path_factory.mktemp(name)))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the entries of a cache that is empty."""
    monkeypatch.setenv("SIMPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return load_tokenizer("builtin:guide")
