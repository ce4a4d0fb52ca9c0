"""Whether what a recipe names is here at all: asked before torch is imported, because most first mistakes are these."""

from pathlib import Path

from simpo_cli.data.model_files import require_startable
from simpo_cli.data.sources import locate
from simpo_cli.data.tokenizer import read_template, require_model_name
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataSource, Recipe


def require_inputs(recipe: Recipe) -> None:
    """Refuse a model folder, pairs or a template that do not exist; ids of the hub are left to the run.

    Raises:
        UserError: names the key.
    """
    path = recipe.model.path
    if Path(path).expanduser().is_dir():
        require_startable(path, Path(path).expanduser())
    elif not path.startswith("builtin:"):
        require_model_name(path)
    for key, named in (("data.train", recipe.data.train), ("data.eval", recipe.data.eval)):
        sources = [DataSource(path=named)] if isinstance(named, str) else named or []
        for source in sources:
            try:
                locate(source, "eval" if key == "data.eval" else "train")
            except UserError as error:
                subject = f"{key}: {error.where} " if error.where else f"{key}: "
                raise UserError(f"{subject}{error.problem}", error.fix) from error
    if recipe.data.chat_template not in (None, "none"):
        read_template(recipe.data.chat_template)
