"""The recipe of a run: schema, composition and checks.

`compose` is the door: `compose("demo", ["train.max_steps=3"]).recipe.loss.beta`. Names are imported when they are first
used: `simpo --help` needs none of them, and `simpo stats FILE` no more than the schema.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simpo_cli.recipe.checks import Finding
    from simpo_cli.recipe.composition import ComposedRecipe, compose, examine
    from simpo_cli.recipe.schema import DataSource, LoraRecipe, LossRecipe, Recipe
    from simpo_cli.recipe.tree import Origin

_HOMES = {
    "checks": ("Finding",),
    "composition": ("ComposedRecipe", "compose", "examine"),
    "schema": ("DataSource", "LoraRecipe", "LossRecipe", "Recipe"),
    "tree": ("Origin",),
}
__all__ = [
    "ComposedRecipe",
    "DataSource",
    "Finding",
    "LoraRecipe",
    "LossRecipe",
    "Origin",
    "Recipe",
    "compose",
    "examine",
]


def __getattr__(name: str) -> Any:
    """Import the module of a name when the name is used."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
