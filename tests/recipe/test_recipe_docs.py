"""docs/recipes.md is run: its YAML blocks are files, its commands are typed, and they print what it shows."""

import re
import shlex
from pathlib import Path

import pytest

import simpo_cli
from simpo_cli.cli.main import run
from simpo_cli.names import shipped_names
from simpo_cli.recipe import compose

DOCS = Path(simpo_cli.__file__).parent.parent / "docs"


def blocks(page: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def typed(line: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What one line of a shell prints; a pipe into grep -E is done here."""
    command, _, pattern = line.partition(" | grep -E ")
    assert command.startswith("simpo ")
    run(shlex.split(command)[1:])
    shown = capsys.readouterr()
    lines = [*shown.out.splitlines(), *(text for text in shown.err.splitlines() if not text.startswith(HINTS))]
    return [text for text in lines if re.search(shlex.split(pattern)[0], text)] if pattern else lines


HINTS = ("To look at one", "To make it yours", "Wrote ", "Next: ")


@pytest.mark.skipif(not DOCS.is_dir(), reason="the package is installed, not a checkout")
def test_the_page_about_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCRATCH", raising=False)
    for language, text in blocks("recipes.md"):
        if language == "yaml":
            name = text.partition("\n")[0].removeprefix("# ")
            Path(name).write_text(text)
            continue
        wanted: list[str] = []
        seen: list[str] = []
        for line in text.splitlines():
            if line.startswith("$ "):
                wanted.append(line)
                seen += [line, *typed(line[2:], capsys)]
            else:
                wanted.append(line)
        assert seen == wanted


@pytest.mark.skipif(not DOCS.is_dir(), reason="the package is installed, not a checkout")
def test_the_table_of_the_paper() -> None:
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in (DOCS / "paper.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `paper/")
    ]
    assert sorted(row[0] for row in rows) == [name for name in shipped_names() if name.startswith("paper/")]
    for name, model, data, beta, ratio, gamma, rate, lengths in rows:
        recipe = compose(name).recipe
        assert (model, data) == (recipe.model.path, recipe.data.train[0].path)
        assert (float(beta), float(ratio)) == (recipe.loss.beta, recipe.loss.gamma_beta_ratio)
        assert float(gamma) == pytest.approx(recipe.loss.margin)
        assert float(rate) == recipe.train.learning_rate
        assert lengths == f"{recipe.data.max_length} / {recipe.data.max_prompt_length}"
