"""What stops a run before any pair is read: its tokenizer, and what its recipe names and is not here."""

import json
from pathlib import Path

import pytest

from simpo_cli.data.prepare import prepare_data, require_inputs
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.schema import DataRecipe, DataSource, ModelRecipe, Recipe
from tests.data.pair_files import GOOD, Write
from tests.tiny import CHATML, byte_level_tokenizer, save_tokenizer


def prepared(folder: Path, train: str) -> int:
    data = DataRecipe(train=train, holdout=0)
    return len(prepare_data(Recipe(name="a", model=ModelRecipe(path=str(folder)), data=data)).train)


def test_a_tokenizer_without_any_end_is_refused(write: Write, tmp_path: Path) -> None:
    """Without EOS and padding nothing ends a response, unless the template or the generation config does."""
    train = write("prefs.jsonl", [{**GOOD, "prompt": f"{i}?"} for i in range(3)])
    folder = tmp_path / "model"
    special = ("<|pad|>", "<|im_start|>", "<|im_end|>")

    def save(eos: str | None = None, pad: str | None = None, template: str | None = None) -> None:
        save_tokenizer(folder, byte_level_tokenizer(special), bos=None, eos=eos, pad=pad, template=template)

    save()
    with pytest.raises(UserError, match="has no end-of-text token") as caught:
        prepared(folder, train)
    assert (caught.value.where, caught.value.exit_code) == (str(folder), ExitCode.USAGE)
    assert "eos_token in tokenizer_config.json" in caught.value.fix
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    assert prepared(folder, train) == 3
    (folder / "generation_config.json").unlink()
    for end in ({"pad": "<|pad|>"}, {"eos": "<|im_end|>"}, {"template": CHATML}):
        save(**end)
        assert prepared(folder, train) == 3


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
