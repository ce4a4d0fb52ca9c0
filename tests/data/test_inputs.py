"""What a recipe names and is not here: refused before anything is read."""

from pathlib import Path

import pytest

from simpo_cli.data.inputs import require_inputs
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataRecipe, DataSource, ModelRecipe, Recipe
from tests.data.pair_files import GOOD, Write


def recipe(model: str = "builtin:guide", **data: object) -> Recipe:
    return Recipe(name="a", model=ModelRecipe(path=model), data=DataRecipe(**{"train": "org/pairs", **data}))


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (recipe("nope"), "the model folder nope does not exist."),
        (recipe("./org/nope"), "the model folder ./org/nope does not exist."),
        (recipe("a/b/c"), "the model folder a/b/c does not exist."),
        (recipe("~/of-nobody/at-all"), "the model folder ~/of-nobody/at-all does not exist."),
        (recipe("prefs.jsonl"), "model.path: prefs.jsonl is a file of pairs, and a model folder is wanted."),
        (recipe(train="pref.jsonl"), "data.train: pref.jsonl does not exist."),
        (recipe(train=[DataSource(path="prefs.jsonl"), DataSource(path="x.csv")]), "data.train: x.csv does not exist."),
        (recipe(train="empty"), "data.train: empty is a folder without data files."),
        (recipe(eval="x.csv"), "data.eval: x.csv does not exist."),
        (recipe(train="builtin:gide"), "data.train: builtin:gide is not embedded here."),
        (recipe(chat_template="x.jinja"), "data.chat_template names x.jinja, which cannot be read: FileNotFoundError."),
    ],
)
def test_what_is_not_here(
    wanted: Recipe, problem: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("prefs.jsonl", [GOOD])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        require_inputs(wanted)
    assert caught.value.problem == problem
    assert caught.value.fix
    assert not caught.value.where  # the recipe's line is put there


def test_what_is_here_or_may_be_on_the_hub(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("prefs.jsonl", [GOOD])
    write("chat.jinja", "{{ messages }}")
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("model", "~/model", "org/model", "builtin:guide"):
        require_inputs(recipe(path, train="prefs.jsonl", eval="~/prefs.jsonl", chat_template="~/chat.jinja"))
    require_inputs(recipe(train="builtin:guide", chat_template="none"))
