"""Errors that a run raises long after the recipe was read: they get the place of the key that they are about."""

import pytest

from simpo_cli.errors import ExitCode, UserError, about
from simpo_cli.recipe import compose
from tests.recipe.recipe_texts import Write

TEXT = """\
name: a
model:
  path: org/model
  lora:
    target_modules: [nope]
data:
  train: prefs.jsonl
  holdout: 5
"""


@pytest.mark.parametrize(
    ("key", "where"),
    [
        ("model.lora.target_modules", "r.yaml:5"),
        ("model.lora.rank", "r.yaml:4"),  # nobody wrote it: its section
        ("data.max_length", "r.yaml:6"),
        ("data.chat_template_kwargs.foo", "r.yaml:6"),
        ("train.tokens_per_microbatch", "override 1"),
        ("tracking.report_to", "r.yaml"),
        ("output_dir", "r.yaml"),
        ("model.path", "r.yaml:3"),
        ("data.holdout", "r.yaml:8"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("exit_code", [ExitCode.USAGE, ExitCode.ENVIRONMENT])
def test_the_place_of_an_error_is_that_of_its_key(key: str, where: str, exit_code: ExitCode, write: Write) -> None:
    write("r", TEXT)
    composed = compose("r.yaml", ["train.tokens_per_microbatch=8"])
    located = composed.located(UserError("it is so.", "Mend it.", key=key, exit_code=exit_code))
    assert (located.problem, located.fix, located.where) == ("it is so.", "Mend it.", where)
    assert (located.key, located.exit_code) == (key, exit_code)


def test_a_place_in_the_data_is_kept(write: Write) -> None:
    write("r", TEXT)
    error = UserError("this pair is over the limits.", "", where="prefs.jsonl:17", key="data.overlong")
    assert compose("r.yaml").located(error) is error


def test_the_nearest_key_counts() -> None:
    for given, key in (("", "model.path"), ("model.lora.rank", "model.lora.rank")):
        with pytest.raises(UserError) as caught, about("model.path"):
            raise UserError("it is so.", "", key=given)
        assert caught.value.key == key


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("loss: {bata: 2}", "loss.bata"),
        ("seed: -1", "seed"),
        ("loss: {type: hinge, label_smoothing: 0.1}", "loss.label_smoothing"),
        ("data: {columns: {promt: q}}", "data.columns.promt"),
    ],
)
def test_an_error_of_the_text_names_its_key(text: str, key: str, write: Write) -> None:
    write("r", f"defaults: demo\n{text}\n")
    with pytest.raises(UserError) as caught:
        compose("r.yaml")
    assert caught.value.key == key
