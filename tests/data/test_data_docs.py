"""docs/data.md is read: its examples are files, they load as the page says, and its commands print what it shows."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import simpo_cli
from simpo_cli.cli.main import run
from simpo_cli.data.formats.known import KNOWN
from simpo_cli.data.load import PairReader
from simpo_cli.recipe.composition import compose

PAGE = Path(simpo_cli.__file__).parent.parent / "docs" / "data.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the package is installed, not a checkout")


def pieces() -> Iterator[tuple[str, str, str]]:
    """(language, file name, text) of each block, and (what, "", text) of each line that says how it is read."""
    pattern = (
        r"^```(?P<language>\w+) ?(?P<name>\S*)\n(?P<text>.*?)^```$|^(?P<said>Read as|Not used): `(?P<decision>[^\n]*)`$"
    )
    for found in re.finditer(pattern, PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if found["decision"] is not None:
            yield found["said"], "", found["decision"]
        else:
            yield found["language"], found["name"], found["text"]


def test_the_page_about_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    last = ""
    read: list[str] = []
    for kind, name, text in pieces():
        match kind:
            case "json" | "csv":
                Path(name).write_text(text, encoding="utf-8")
                last = name
            case "yaml":
                last = text.partition("\n")[0].removeprefix("# ")
                Path(last).write_text(text, encoding="utf-8")
            case "Read as":
                reader = reader_of(last)
                pairs = list(reader)
                assert pairs
                assert reader.decision == text
                if last != "mixed.yaml":  # the page's records all say one thing
                    [pair] = pairs
                    assert "blue" in pair.chosen.lower()
                    assert "green" in pair.rejected.lower()
                read.append(last)
            case "Not used":
                assert reader.remarks == [f"not used: {text}"]
            case "console":
                command, *shown = text.splitlines()
                run(shlex.split(command.removeprefix("$ simpo ")))
                assert capsys.readouterr().err.splitlines() == shown
    assert len(read) == 49


def reader_of(name: str) -> PairReader:
    """A reader of a file, or of the sources of a recipe."""
    if not name.endswith(".yaml"):
        return PairReader(name, role="train")
    data = compose(name).recipe.data
    return PairReader(data.sources(data.train), role="train")


def test_the_page_shows_every_entry_of_the_table() -> None:
    said = [text for kind, _, text in pieces() if kind == "Read as"]
    names = {known.name for known in KNOWN if not known.refused}
    assert {name for name in names if not any(text.startswith(f"{name}: ") for text in said)} == set()
