"""The key of encoded pairs: a digest of all that they depend on, so that equal keys mean equal tokens.

These are the bytes of the files and the names that messages give them, how they are to be read, every data setting but
those that only choose among the pairs, the tokenizer with its templates, and the code that does it: ours by its source,
which nobody can forget to count up, and the libraries by their versions.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import simpo_cli
from simpo_cli.data.file_bytes import open_regular
from simpo_cli.data.hub import hub_identity
from simpo_cli.data.sources import HubData, Role, locate
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.recipe.schema import DataRecipe, DataSource

_LIBRARIES = ("tokenizers", "jinja2", "numpy", "pyarrow", "datasets")
_OF_THE_READING = ("split", "columns", "labels", "direction", "max_pairs")
_NOT_OF_THE_TOKENS = (
    *("train", "eval", "holdout"),
    *("columns", "labels", "direction"),  # each source has taken them over
    "chat_template",  # the template itself is part of the tokenizer
)

Identities = list[tuple[str, str]]  # (name, sha256 or hub commit) of each file


def identities_of(source: DataSource, role: Role) -> Identities:
    """The files of a source and what tells their content.

    Raises:
        UserError: a file is missing or cannot be read, or the hub does not give the data set.
    """
    located = locate(source, role)
    if isinstance(located, HubData):
        return [(located.name, hub_identity(located.name, located.split))]
    return [(file.name, _sha256(file.path, file.name)) for file in located]


def key_of(
    sources: Sequence[DataSource], identities: Sequence[Identities], data: DataRecipe, tokenizer: TextTokenizer
) -> str:
    """The key, 64 hex digits.

    Args:
        sources: what is read; how often a source is repeated does not matter.
        identities: the files of each source.
        data: the recipe's data section.
        tokenizer: the tokenizer with its templates.
    """
    settings = {name: value for name, value in asdict(data).items() if name not in _NOT_OF_THE_TOKENS}
    parts = {
        "sources": [
            {"files": files, **{name: getattr(source, name) for name in _OF_THE_READING}}
            for source, files in zip(sources, identities, strict=True)
        ],
        "settings": settings,
        "tokenizer": tokenizer.identity,
        "code": _code_identity(),
    }
    return _digest(parts)


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _sha256(path: str, name: str) -> str:
    with open_regular(path, name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


@cache
def _code_identity() -> str:
    """The code that makes pairs and tokens of files, and what it rests on."""
    root = Path(simpo_cli.__file__).parent
    sources = {str(file.relative_to(root)): file.read_text("utf-8") for file in sorted((root / "data").rglob("*.py"))}
    libraries = {name: _version(name) for name in _LIBRARIES}
    return _digest([simpo_cli.__version__, sources, libraries, sys.version_info[:2]])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
