"""Whether what a recipe names is here at all: asked before torch is imported, because most first mistakes are these."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from simpo_cli.data.hub import require_obtainable
from simpo_cli.data.load import PairReader
from simpo_cli.data.model_files import require_startable
from simpo_cli.data.sources import HubData, Role, locate
from simpo_cli.data.tokenizer import read_template, require_model_name
from simpo_cli.errors import UserError, about
from simpo_cli.names import wrong_kind
from simpo_cli.recipe.schema import DataRecipe, DataSource, Recipe

_READ = 100  # pairs of each source, to see that it can be read as the recipe says


def require_inputs(recipe: Recipe) -> None:
    """Refuse a model folder, pairs or a template that do not exist, and ids of the hub that cannot be fetched.

    Raises:
        UserError: names the key.
    """
    for check in _checks(recipe, _require_obtainable):
        check()
    if not Path(recipe.model.path).expanduser().is_dir() and not recipe.model.path.startswith("builtin:"):
        with about("model.path"):
            require_obtainable(recipe.model.path, "model")


def faults_of_inputs(recipe: Recipe) -> Iterator[UserError]:
    """What is wrong with the model folder, the files of pairs and the template; ids of the hub are left to the run.

    The first pairs of every file are read as the run reads them.
    """
    for check in _checks(recipe, partial(_require_readable, recipe.data)):
        try:
            check()
        except UserError as error:
            yield error


def _checks(recipe: Recipe, require_source: Callable[[str, DataSource], None]) -> Iterator[Callable[[], None]]:
    """One check of each thing that a recipe names."""
    yield partial(_require_model, recipe)
    yield partial(_require_template, recipe)
    for key, named in (("data.train", recipe.data.train), ("data.eval", recipe.data.eval)):
        for source in recipe.data.sources(named or []):
            yield partial(require_source, key, source)


_ROLES: dict[str, Role] = {"data.train": "train", "data.eval": "eval"}


def _require_obtainable(key: str, source: DataSource) -> None:
    try:
        located = locate(source, _ROLES[key])
        if isinstance(located, HubData):
            require_obtainable(located.name, "dataset")
    except UserError as error:
        raise _about(key, error) from error


def _require_readable(data: DataRecipe, key: str, source: DataSource) -> None:
    try:
        located = locate(source, _ROLES[key])
    except UserError as error:
        raise _about(key, error) from error
    if not isinstance(located, HubData):
        reader = PairReader(
            [source], role=_ROLES[key], on_bad_record=data.on_bad_record, on_no_signal=data.on_no_signal
        )
        if not list(islice(reader.read_source(source), _READ)):
            reader.require_pairs()


@about("model.path")
def _require_model(recipe: Recipe) -> None:
    path = recipe.model.path
    if wrong := wrong_kind(path, "model"):
        raise _about("model.path", wrong)
    if Path(path).expanduser().is_dir():
        require_startable(path, Path(path).expanduser())
    elif not path.startswith("builtin:"):
        require_model_name(path)


def _require_template(recipe: Recipe) -> None:
    if recipe.data.chat_template not in (None, "none"):
        read_template(recipe.data.chat_template)


def _about(key: str, error: UserError) -> UserError:
    subject = f"{key}: {error.where} " if error.where else f"{key}: "
    return UserError(f"{subject}{error.problem}", error.fix, key=key, exit_code=error.exit_code)
