"""What a name behind `simpo eval` means: a run, a model, a checkpoint or a recipe, and what goes with it."""

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.start import fitting_lengths
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.load import load_start
from simpo_cli.model.policy import Policy, trainable
from simpo_cli.model.source import ModelSource, choose_adapter, start_model
from simpo_cli.model.tensor_file import TensorMismatchError, read_tensors
from simpo_cli.names import HUB_ID, find_recipe, is_hub_id, kind_of, no_such_target
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import ModelRecipe, Recipe
from simpo_cli.run.documents import read_receipt
from simpo_cli.run.folder import WEIGHTS, require_own_model
from simpo_cli.run.manifest import Checkpoint, DamagedCheckpointError, find_checkpoints, open_checkpoint

_CHECKPOINT = re.compile(r"step-\d{8}")


@dataclass(frozen=True)
class Target:
    """A model to score.

    Attributes:
        name: as people read it.
        recipe: pairs, lengths and objective; its model is the one to score, or the one under the checkpoint.
        start: the model that training started from, where that is another one.
        checkpoint: the folder whose weights go over the model.
        master: the run's last checkpoint: the float32 weights that the model was saved from.
        of_run: the run's recipe as it was trained; None where there is no run.
        has_training_pairs: whether the recipe's data.train is what the model was trained on, or will be.
    """

    name: str
    recipe: Recipe
    start: ModelRecipe | None = None
    checkpoint: Path | None = None
    master: Path | None = None
    of_run: Recipe | None = None
    has_training_pairs: bool = True

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for two names of one model under one recipe."""
        path = Path(self.recipe.model.path).expanduser()
        here = str(path.resolve()) if path.is_dir() else self.recipe.model.path
        return here, self.recipe.model.revision, self.checkpoint and self.checkpoint.resolve()

    def source(self) -> ModelSource:
        """The saved model, or the one under the checkpoint."""
        return start_model(self.recipe.model)

    def load_checkpoint(self, source: ModelSource, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The start model with the checkpoint's weights over it."""
        assert self.checkpoint is not None, "a saved model is read without this"
        start = choose_adapter(self.recipe.model, source)
        model = load_start(start, source, dtype, device)
        if start.lora is not None and start.adapter != "continue":
            model = add_adapters(model, start.lora, self.recipe.seed)
        try:
            with whole_checkpoint(self.checkpoint) as checkpoint, checkpoint.open_parts(WEIGHTS) as files:
                read_tensors(files, trainable(Policy(model)))
        except TensorMismatchError as error:
            raise UserError(
                f"{self.checkpoint} does not fit the model {source.name}: {error}.",
                "The run's start model is not what it was; put it back, or score the run's model/.",
            ) from error
        return model


@contextmanager
def whole_checkpoint(folder: Path) -> Iterator[Checkpoint]:
    """A checkpoint that is read; its bytes are looked at when they are.

    Raises:
        UserError: it is damaged (exit code 4).
    """
    try:
        yield open_checkpoint(folder)
    except DamagedCheckpointError as error:
        raise UserError(
            f"the checkpoint {error.folder} is damaged: {error.reason}.",
            "Score another one of the run, or its model/.",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error


def find_targets(names: Sequence[str], overrides: Sequence[str]) -> list[Target]:
    """Each name with its recipe; a model by itself takes pairs and objective of the first that brings a recipe.

    Raises:
        UserError: a name means nothing, or is there twice, or nothing says which pairs to score.
    """
    found: list[Target | str] = [_with_recipe(name, overrides) or name for name in names]
    leader = next((target.recipe for target in found if isinstance(target, Target)), None)
    targets = [one if isinstance(one, Target) else model_alone(one, overrides, leader) for one in found]
    for number, target in enumerate(targets):
        if target.identity in [other.identity for other in targets[:number]]:
            raise UserError(f"{target.name} is named twice.", "Name models that differ.")
    return targets


def find_speaker(name: str) -> Target:
    """A model that is to answer: what a name means, with the recipe of its run or, without one, with the defaults.

    Raises:
        UserError: the name means nothing.
    """
    return _with_recipe(name, ()) or model_alone(name, ["data.eval=-"], None)  # nothing is read from there


def baseline_of(target: Target, name: str | None, overrides: Sequence[str]) -> Target | None:
    """The model that a target is compared with, to be scored under the target's recipe.

    Its name is like a target's: of a run it is the saved model, of a recipe the start model. `none` is nothing, and
    None the model that training started from. It may be the target itself.
    """
    if name is None:
        start = target.start
        if start is None:
            return None
        name = start.path if start.quantization is None else f"{start.path} ({start.quantization})"
        return Target(name, replace(target.recipe, model=start))
    if name == "none":
        return None
    found = _with_recipe(name, overrides)
    if found is None:
        return model_alone(name, overrides, target.recipe)
    return replace(found, recipe=replace(target.recipe, model=found.recipe.model))


def model_alone(name: str, overrides: Sequence[str], recipe: Recipe | None) -> Target:
    """A model that no run has made: a folder, `builtin:guide`, or a hub id, perhaps ORG/NAME@REVISION.

    The recipe says pairs and objective; without one the overrides must name data.eval, and the rest is the default.
    """
    named = None if Path(name).expanduser().exists() else HUB_ID.fullmatch(name)
    path, revision = (name, None) if named is None else (named[1], named[2])
    if recipe is not None:
        model = replace(recipe.model, path=path, revision=revision, lora=None, quantization=None)
        return Target(name, replace(recipe, model=model), has_training_pairs=False)
    if not any(override.startswith("data.eval") for override in overrides):
        raise UserError(f"{name} is a model, and nothing says which pairs to score.", "Add --data FILE.")
    lengths = fitting_lengths(path, revision)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "eval.yaml")
        file.write_text("name: eval\n", encoding="utf-8")
        given = [
            f"model.path={path}",
            f"model.revision={json.dumps(revision)}",
            "data.train=-",
            f"data.max_length={lengths.max_length}",
            f"data.max_prompt_length={lengths.max_prompt_length}",
        ]
        return Target(name, compose(str(file), [*given, *overrides]).recipe, has_training_pairs=False)


def _with_recipe(name: str, overrides: Sequence[str]) -> Target | None:
    """A run, a part of one, or a recipe; None for a model by itself."""
    path = Path(name).expanduser()
    if (path / "run.json").is_file():
        if not (path / "model").is_dir():
            raise UserError(
                f"the run {name} has no model yet.",
                f"Let the run finish, or name one of its checkpoints: {path}/checkpoints/step-...",
                exit_code=ExitCode.ENVIRONMENT,
            )
        return _of_run(path, path / "model", overrides)
    if _CHECKPOINT.fullmatch(path.name) and path.is_dir():
        run = path.parent.parent
        if not (run / "run.json").is_file():
            raise UserError(
                f"{path} is a checkpoint without its run.", "Leave it where the run wrote it: RUN/checkpoints/step-..."
            )
        with whole_checkpoint(path):
            trained = _recipe_of(run, overrides)
        return Target(name=str(path), recipe=trained, start=trained.model, checkpoint=path, of_run=trained)
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return _of_run(path.parent, path, overrides) if (path.parent / "run.json").is_file() else None
    if kind_of(name) == "pairs":
        raise no_such_target(name)
    if path.is_dir():
        raise UserError(
            f"{name} is a folder, but neither a run nor a model.",
            "Name a run folder (with run.json), a model folder (with config.json), a checkpoint or a recipe.",
        )
    try:
        find_recipe(name)
    except UserError as error:
        if is_hub_id(name) or name == "builtin:guide":
            return None
        raise no_such_target(name) from error
    return Target(name, compose(name, overrides).recipe)


def _of_run(run: Path, model: Path, overrides: Sequence[str]) -> Target:
    """A model that a run has saved; adapters are saved as they are trained, so they need no float32 checkpoint."""
    require_own_model(run)
    steps = read_receipt(run)["plan"]["steps"]
    trained = _recipe_of(run, overrides)
    recipe = _recipe_of(run, [f"model.path={model}", *overrides])
    whole = [] if trained.model.lora is not None else find_checkpoints(run / "checkpoints")[0]
    master = next((checkpoint.folder for checkpoint in whole if checkpoint.step == steps), None)
    return Target(str(model), recipe, start=trained.model, master=master, of_run=trained)


def _recipe_of(run: Path, overrides: Sequence[str]) -> Recipe:
    return compose(str(run / "recipe.yaml"), overrides).recipe
