"""`simpo train`: one run from a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simpo_cli.cli.options import Overrides, RecipeName, TrustRemoteCode, importing
from simpo_cli.errors import UserError
from simpo_cli.model.remote_code import trusting

if TYPE_CHECKING:
    from simpo_cli.recipe.composition import ComposedRecipe


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run of this name, or start it if there is none.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set an existing run of this name aside, and start anew.")
    ] = False,
    allow_changed: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Resume although this has changed since; the refusal names the keys."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check data, model and memory, say what would run, write nothing.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="For smoke runs: skip every evaluation and the probe answers.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train a model from a recipe."""
    from simpo_cli.recipe.composition import compose

    if fresh and resume:
        raise UserError("--resume continues a run and --fresh sets it aside.", "Give one of the two.")
    if allow_changed and not resume:
        raise UserError("--allow-changed says what may differ from the run that --resume continues.", "Add --resume.")
    composed = compose(recipe, overrides or [])
    try:
        _require_here(composed, fresh=fresh, resume=resume, dry_run=dry_run)
        with trusting(trust_remote_code):
            modes = {"fresh": fresh, "resume": resume, "allow_changed": allow_changed or [], "quick": quick}
            _run(composed, dry_run=dry_run, **modes)
    except UserError as error:
        raise composed.located(error) from error


def _require_here(composed: "ComposedRecipe", *, fresh: bool, resume: bool, dry_run: bool) -> None:
    """What can be refused without torch, whose import takes seconds."""
    from simpo_cli.data.prepare import require_inputs
    from simpo_cli.run.folder import require_usable

    require_inputs(composed.recipe)
    if not dry_run:
        require_usable(Path(composed.recipe.output_dir), fresh=fresh, resume=resume)


def _run(composed: "ComposedRecipe", *, dry_run: bool, **modes: Any) -> None:
    from simpo_cli.report.watch import WithReport, watch

    terminal = watch()
    observer = WithReport(terminal, Path(composed.recipe.output_dir))
    terminal.open()
    try:
        with importing():
            from simpo_cli.train.session import train as run

        outcome = run(composed, observer=terminal if dry_run else observer, dry_run=dry_run, **modes)
        if outcome is None and not dry_run:
            observer.was_complete()
    except UserError:
        observer.ended_early()
        raise
    finally:
        observer.close()
