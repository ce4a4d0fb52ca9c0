"""The recipe of a run: schema, composition and checks.

`compose` is the door: `compose("demo", ["train.max_steps=3"]).recipe.loss.beta`.
"""

from simpo_cli.recipe.checks import Finding
from simpo_cli.recipe.compose import ComposedRecipe, Examination, compose, examine
from simpo_cli.recipe.names import RecipeFile, find_recipe, shipped_names
from simpo_cli.recipe.schema import (
    CheckpointRecipe,
    DataRecipe,
    DataSource,
    EvalRecipe,
    ExportRecipe,
    FieldError,
    LoraRecipe,
    LossRecipe,
    ModelRecipe,
    Recipe,
    TrackingRecipe,
    TrainRecipe,
)
from simpo_cli.recipe.tree import Origin

__all__ = [
    "CheckpointRecipe",
    "ComposedRecipe",
    "DataRecipe",
    "DataSource",
    "EvalRecipe",
    "Examination",
    "ExportRecipe",
    "FieldError",
    "Finding",
    "LoraRecipe",
    "LossRecipe",
    "ModelRecipe",
    "Origin",
    "Recipe",
    "RecipeFile",
    "TrackingRecipe",
    "TrainRecipe",
    "compose",
    "examine",
    "find_recipe",
    "shipped_names",
]
