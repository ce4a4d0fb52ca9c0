"""What two recipes say differently."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from simpo_cli.recipe.schema import Recipe

_NAMES = ("name", "output_dir")  # say where a run lies, not what it does


def differences(first: Recipe, second: Recipe) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, dotted, in the order of the schema, each with both values.

    gamma and its ratio are compared as both of what they come to; names and folders of the runs are left out.
    """
    ours, theirs = flat(_settled(first)), flat(_settled(second))
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return {key: (ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)}


def _settled(recipe: Recipe) -> dict[str, Any]:
    sections = {key: value for key, value in asdict(recipe).items() if key not in _NAMES}
    sections["loss"] |= {"gamma": recipe.loss.margin, "gamma_beta_ratio": recipe.loss.margin_beta_ratio}
    return sections


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values of a tree by their dotted keys; lists and empty mappings are values."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = value
    return found
