"""`simpo train`: one run from a recipe."""

from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values that replace those of the recipe.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set an existing run of this name aside, and start anew.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check data, model and memory, say what would run, write nothing.")
    ] = False,
) -> None:
    """Train a model from a recipe."""
    from simpo_cli.recipe import compose

    composed = compose(recipe, overrides or [])

    from simpo_cli.cli.quiet import quiet_libraries
    from simpo_cli.report.watch import watch

    quiet_libraries()
    observer = watch()
    try:
        from simpo_cli.train.run import train as run

        run(composed, fresh=fresh, dry_run=dry_run, observer=observer)
    finally:
        observer.close()
