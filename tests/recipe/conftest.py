"""Texts of recipes that several tests use, a folder of its own for each test, and a way to write recipes into it."""

from collections.abc import Callable
from pathlib import Path

import pytest

BASE = "name: a\nmodel: {path: builtin:guide}\ndata: {train: builtin:guide}\n"

Write = Callable[[str, str | bytes], Path]


def cases_of(file_name: str) -> list[object]:
    """The cases of a text file: `=== NAME`, a recipe, `>>>`, the two lines of its error.

    A recipe may be followed by `+++ FILE` with the text of another file, and by overrides, each behind `$ `.
    """
    blocks = Path(__file__).with_name(file_name).read_text(encoding="utf-8").split("=== ")[1:]
    cases: list[object] = []
    for block in blocks:
        name, _, rest = block.partition("\n")
        text, _, wanted = rest.partition(">>>\n")
        cases.append(pytest.param(text, wanted.rstrip("\n"), id=name))
    return cases


def write_case(text: str, write: Write) -> list[str]:
    """Write the files of a case, the first of them as r.yaml; return its overrides."""
    lines = text.splitlines(keepends=True)
    overrides = [line.removeprefix("$ ").rstrip("\n") for line in lines if line.startswith("$ ")]
    first, *others = "".join(line for line in lines if not line.startswith("$ ")).split("+++ ")
    write("r", first)
    for other in others:
        name, _, content = other.partition("\n")
        write(name.removesuffix(".yaml"), content)
    return overrides


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write NAME.yaml into the test's folder."""

    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file
