"""docs/data.md is read: its examples are files, they load as the page says, and its commands print what it shows."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import simpo_cli
from simpo_cli.cli.main import run
from simpo_cli.data.load import load_pairs
from simpo_cli.recipe import compose

PAGE = Path(simpo_cli.__file__).parent.parent / "docs" / "data.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the package is installed, not a checkout")


def pieces() -> Iterator[tuple[str, str, str]]:
    """(language, file name, text) of each block, and (`decision`, "", text) of each line that says how it is read."""
    pattern = r"^```(?P<language>\w+) ?(?P<name>\S*)\n(?P<text>.*?)^```$|^Read as: `(?P<decision>[^\n]*)`$"
    for found in re.finditer(pattern, PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if found["decision"] is not None:
            yield "decision", "", found["decision"]
        else:
            yield found["language"], found["name"], found["text"]


def test_the_page_about_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    last = ""
    decisions = 0
    for language, name, text in pieces():
        match language:
            case "json" | "csv":
                Path(name).write_text(text, encoding="utf-8")
                last = name
            case "yaml":
                last = text.partition("\n")[0].removeprefix("# ")
                Path(last).write_text(text, encoding="utf-8")
            case "decision":
                sources = compose(last).recipe.data.train if last.endswith(".yaml") else last
                assert load_pairs(sources, role="train").decision == text
                decisions += 1
            case "console":
                command, *shown = text.splitlines()
                run(shlex.split(command.removeprefix("$ simpo ")))
                assert capsys.readouterr().err.splitlines() == shown
    assert decisions == 10


def test_examples_of_pairs_prefer_the_blue_sky(tmp_path: Path) -> None:
    """Every form gives the same pair: the page's records all say one thing."""
    for language, name, text in pieces():
        if language in ("json", "csv") and name not in ("judged.jsonl", "unpaired.jsonl"):
            file = tmp_path / name
            file.write_text(text, encoding="utf-8")
            [pair] = load_pairs(str(file), role="train").pairs
            assert "blue" in pair.chosen.lower()
            assert "green" in pair.rejected.lower()
