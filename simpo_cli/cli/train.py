"""`simpo train`: one run from a recipe."""

from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values that replace those of the recipe.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an older run in the folder aside and start anew.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything up to the first step, then stop.")] = False,
) -> None:
    """Train a model from a recipe."""
    from simpo_cli.recipe import compose

    composed = compose(recipe, overrides or [])
    from simpo_cli.train.run import run_recipe

    run_recipe(composed, fresh=fresh, dry_run=dry_run)
