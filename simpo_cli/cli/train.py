"""`simpo train`: one run from a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simpo_cli.errors import UserError

if TYPE_CHECKING:
    from simpo_cli.recipe import ComposedRecipe


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
    try:
        _require_here(composed, fresh=fresh, dry_run=dry_run)
        _run(composed, fresh=fresh, dry_run=dry_run)
    except UserError as error:
        raise composed.located(error) from error


def _require_here(composed: "ComposedRecipe", *, fresh: bool, dry_run: bool) -> None:
    """What can be refused without torch, whose import takes seconds."""
    from simpo_cli.data.inputs import require_inputs
    from simpo_cli.train.run_folder import require_usable

    require_inputs(composed.recipe)
    if not dry_run:
        require_usable(Path(composed.recipe.output_dir), fresh=fresh)


def _run(composed: "ComposedRecipe", *, fresh: bool, dry_run: bool) -> None:
    from simpo_cli.cli.quiet import quiet_libraries
    from simpo_cli.report.watch import watch
    from simpo_cli.report.with_report import WithReport

    quiet_libraries()
    terminal = watch()
    observer = WithReport(terminal, Path(composed.recipe.output_dir))
    try:
        from simpo_cli.train.run import train as run

        run(composed, fresh=fresh, dry_run=dry_run, observer=terminal if dry_run else observer)
    except UserError:
        observer.ended_early()
        raise
    finally:
        observer.close()
