"""Texts of recipes that several tests use."""

from collections.abc import Callable
from pathlib import Path

import pytest

BASE = "name: a\nmodel: {path: builtin:guide}\ndata: {train: builtin:guide}\n"

Write = Callable[[str, str | bytes], Path]


def cases_of(file_name: str) -> list[object]:
    """The cases of a text file: `=== NAME`, a recipe, `>>>`, the two lines of its error."""
    blocks = Path(__file__).with_name(file_name).read_text(encoding="utf-8").split("=== ")[1:]
    cases: list[object] = []
    for block in blocks:
        name, _, rest = block.partition("\n")
        text, _, wanted = rest.partition(">>>\n")
        cases.append(pytest.param(text, wanted.rstrip("\n"), id=name))
    return cases
