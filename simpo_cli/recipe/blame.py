"""Which key of a recipe an error of the run is about, by what its two sentences say.

Data, model and device are looked at by code that knows values and not where they were written. Its errors name the key
(`data.max_length is 5000, ...`) or begin with the path that the recipe gives (`org/model holds no weights`).
"""

import re

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.schema import Recipe

_KEY = re.compile(r"\b(?:model|data|loss|train|eval|checkpoint|export|tracking)(?:\.[a-z_]\w*)+|\boutput_dir\b")


def key_of(error: UserError, recipe: Recipe) -> str:
    """The dotted key that an error is about; empty where it is about none."""
    if (first := _KEY.match(error.problem)) is not None:
        return first.group()
    named = {"model.path": recipe.model.path, "data.train": recipe.data.train, "data.eval": recipe.data.eval}
    for key, path in named.items():
        if isinstance(path, str) and re.match(rf"(?:the model folder )?{re.escape(path)} ", error.problem):
            return key
    if error.exit_code != ExitCode.USAGE:
        return ""  # of memory or a disk the recipe is not to blame, though a key may help
    found = _KEY.search(f"{error.problem} {error.fix}")
    return found.group() if found is not None else ""


def enclosing(key: str) -> list[str]:
    """A key and the sections around it, innermost first: where the key was not written, its section was."""
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
