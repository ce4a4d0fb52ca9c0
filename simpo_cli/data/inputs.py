"""Whether what a recipe names is here at all: asked before torch is imported, because most first mistakes are these."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from simpo_cli.data.load import PairReader
from simpo_cli.data.model_files import require_startable
from simpo_cli.data.network import require_obtainable
from simpo_cli.data.sources import HubData, Role, locate
from simpo_cli.data.tokenizer import read_template, require_model_name
from simpo_cli.errors import UserError
from simpo_cli.recipe.named import wrong_kind
from simpo_cli.recipe.schema import DataSource, Recipe

_READ = 100  # pairs of each source, to see that it can be read as the recipe says


def require_inputs(recipe: Recipe) -> None:
    """Refuse a model folder, pairs or a template that do not exist, and ids of the hub that cannot be fetched.

    Raises:
        UserError: names the key.
    """
    _require_model(recipe)
    for key, _, located in _sources(recipe):
        if isinstance(located, UserError):
            raise _about(key, located)
        if isinstance(located, HubData):
            try:
                require_obtainable(located.name, "dataset")
            except UserError as error:
                raise _about(key, error) from error
    if not Path(recipe.model.path).expanduser().is_dir() and not recipe.model.path.startswith("builtin:"):
        require_obtainable(recipe.model.path, "model")
    _require_template(recipe)


def faults_of_inputs(recipe: Recipe) -> Iterator[UserError]:
    """What is wrong with the model folder, the files of pairs and the template; ids of the hub are left to the run.

    The first pairs of every file are read as the run reads them.
    """
    for require in (_require_model, _require_template):
        try:
            require(recipe)
        except UserError as error:
            yield error
    for key, source, located in _sources(recipe):
        if isinstance(located, UserError):
            yield _about(key, located)
        elif not isinstance(located, HubData):
            role, data = _ROLES[key], recipe.data
            reader = PairReader([source], role=role, on_bad_record=data.on_bad_record, on_no_signal=data.on_no_signal)
            try:
                if not list(islice(reader.read_source(source), _READ)):
                    reader.require_pairs()
            except UserError as error:
                yield error


_ROLES: dict[str, Role] = {"data.train": "train", "data.eval": "eval"}


def _require_model(recipe: Recipe) -> None:
    path = recipe.model.path
    if wrong := wrong_kind(path, "model"):
        raise UserError(f"model.path: {wrong.problem}", wrong.fix)
    if Path(path).expanduser().is_dir():
        require_startable(path, Path(path).expanduser())
    elif not path.startswith("builtin:"):
        require_model_name(path)


def _require_template(recipe: Recipe) -> None:
    if recipe.data.chat_template not in (None, "none"):
        read_template(recipe.data.chat_template)


def _sources(recipe: Recipe) -> Iterator[tuple[str, DataSource, object]]:
    """Key and source of all pairs, with what they name, or the error that nothing is there."""
    for key, named in (("data.train", recipe.data.train), ("data.eval", recipe.data.eval)):
        for source in recipe.data.sources(named or []):
            try:
                yield key, source, locate(source, _ROLES[key])
            except UserError as error:
                yield key, source, error


def _about(key: str, error: UserError) -> UserError:
    subject = f"{key}: {error.where} " if error.where else f"{key}: "
    return UserError(f"{subject}{error.problem}", error.fix, exit_code=error.exit_code)
