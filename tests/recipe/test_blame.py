"""Errors that a run raises long after the recipe was read: they get the place of the key that they are about."""

import pytest

from simpo_cli.errors import ExitCode, UserError
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
    ("problem", "fix", "where"),
    [
        ("model.lora.target_modules (['nope']) matches no layer.", "", "r.yaml:5"),
        ("model.lora.rank is 4000.", "", "r.yaml:4"),  # nobody wrote it: its section
        ("data.max_length is 2048, and the model knows 512 positions.", "", "r.yaml:6"),
        ("data.chat_template_kwargs.foo: the chat template reads no such variable.", "", "r.yaml:6"),
        ("train.tokens_per_microbatch is 8.", "", "override 1"),
        ("tracking.report_to names 'foo', which is no tracker.", "", "r.yaml"),
        ("output_dir runs/a is a file.", "", "r.yaml"),
        ("org/model holds no weights.", "", "r.yaml:3"),
        ("the model folder org/model does not exist.", "", "r.yaml:3"),
        ("no training pair is left.", "Give more pairs, or lower data.holdout.", "r.yaml:8"),
        ("the model of another path holds no weights.", "", ""),
        ("runs/a already holds a run.", "Add --fresh, or name this run: name=NEW.", ""),
    ],
)
def test_the_place_of_an_error_is_that_of_its_key(problem: str, fix: str, where: str, write: Write) -> None:
    write("r", TEXT)
    composed = compose("r.yaml", ["train.tokens_per_microbatch=8"])
    located = composed.located(UserError(problem, fix))
    assert (located.problem, located.fix, located.where) == (problem, fix, where)
    assert located.exit_code == ExitCode.USAGE


def test_a_place_in_the_data_is_kept(write: Write) -> None:
    write("r", TEXT)
    error = UserError("data.overlong is error, and this pair is over the limits.", "", where="prefs.jsonl:7")
    assert compose("r.yaml").located(error) is error


def test_of_memory_the_recipe_is_not_to_blame(write: Write) -> None:
    write("r", TEXT)
    composed = compose("r.yaml")
    memory = UserError("the run needs 90 GB.", "Lower data.max_length.", exit_code=ExitCode.ENVIRONMENT)
    assert composed.located(memory) is memory
    gone = UserError("org/model is not a folder here.", "Check it.", exit_code=ExitCode.ENVIRONMENT)
    assert (composed.located(gone).where, composed.located(gone).exit_code) == ("r.yaml:3", ExitCode.ENVIRONMENT)
