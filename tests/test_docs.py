"""README, CONTRIBUTING and docs name what is there: links, files, make targets, commands and their options."""

import re
from pathlib import Path

import pytest
import typer

from simpo_cli.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))}

pytestmark = pytest.mark.skipif(not PAGES, reason="the package is installed, not a checkout")


def _anchors(page: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", PAGES[page], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_what_is_there(page: str) -> None:
    folder = ROOT / "docs" if (ROOT / "docs" / page).is_file() else ROOT
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", PAGES[page]):
        assert (folder / target).exists(), target
        assert not anchor or anchor in _anchors(Path(target).name or page), anchor


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_are_there(page: str) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"(?:`|^    )make ([\w-]+)", PAGES[page], re.MULTILINE)) <= set(targets)


def test_files_of_the_map_are_there() -> None:
    named = re.findall(r"`([\w/]+(?:/|\.(?:py|toml|txt|md|yaml)))`", PAGES["CONTRIBUTING.md"])
    assert len(named) > 20
    missing = [name for name in named if not any((ROOT / top / name).exists() for top in ("", "simpo_cli"))]
    assert missing == []
    rooms = re.findall(r"^ {6}([\w./]+)  ", PAGES["CONTRIBUTING.md"], re.MULTILINE)
    there = {path.name + ("/" if path.is_dir() else "") for path in (ROOT / "simpo_cli").iterdir()}
    assert set(rooms) == {name for name in there if name[:1] not in "_."} - {"shipped_recipes/"}
    inner = re.findall(r"^ {8}([\w./]+)  ", PAGES["CONTRIBUTING.md"], re.MULTILINE)
    assert [name for name in inner if not list(ROOT.glob(f"simpo_cli/*/{name}"))] == []


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_keep_a_promise_are_there(page: str) -> None:
    named = re.findall(r"`((?:tests/)?[\w/]*test_\w+\.py)`", PAGES[page])
    assert [name for name in named if not list((ROOT / "tests").rglob(name.removeprefix("tests/")))] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_the_options_that_are_shown(page: str) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    text = re.sub(r"\n {8,}(?=[\[-])", " ", PAGES[page])  # a line that goes on
    for command, words in re.findall(r"(?:^ {4}|`|\$ )simpo (\w+)([^`\n#]*)", text, re.MULTILINE):
        of_group = getattr(commands[command], "commands", {command: commands[command]})
        name = command if command in of_group else words.split()[0] if words.split() else ""
        if name not in of_group:  # a group, or several of its commands
            continue
        known = {option for parameter in of_group[name].params for option in parameter.opts}
        shown = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", words))
        assert shown <= known, (command, name, shown - known)
