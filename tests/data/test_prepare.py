"""What stops a run because of its tokenizer, before any pair is read."""

import json
from pathlib import Path

import pytest

from simpo_cli.data.prepare import prepare_data
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.schema import DataRecipe, ModelRecipe, Recipe
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
    save(pad="<|pad|>")
    assert prepared(folder, train) == 3
    save(eos="<|im_end|>")
    assert prepared(folder, train) == 3
    save(template=CHATML)
    assert prepared(folder, train) == 3
