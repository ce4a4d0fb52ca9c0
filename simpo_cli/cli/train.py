"""`simpo train`: one run from a recipe."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simpo_cli.cli.options import Overrides, RecipeName, TrustRemoteCode, importing, num_cards, say
from simpo_cli.distributed.launch import launch, same_command
from simpo_cli.distributed.place import Place, take_place
from simpo_cli.errors import UserError
from simpo_cli.model.remote_code import trusting

if TYPE_CHECKING:
    from simpo_cli.recipe.composition import ComposedRecipe
    from simpo_cli.recipe.schema import DistributedRecipe


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

    place = take_place()
    with _told_once_a_host(place):
        if fresh and resume:
            raise UserError("--resume continues a run and --fresh sets it aside.", "Give one of the two.")
        if allow_changed and not resume:
            raise UserError(
                "--allow-changed says what may differ from the run that --resume continues.", "Add --resume."
            )
        composed = compose(recipe, overrides or [])
    if place is not None and place.restarts:
        fresh, resume = False, True
    try:
        with _told_once_a_host(place):
            _require_here(composed, place, fresh=fresh, resume=resume, dry_run=dry_run)
            num_processes = _num_processes(composed.recipe.distributed, place)
        if place is None and num_processes > 1 and not dry_run:
            raise typer.Exit(_launch(composed, num_processes))
        with trusting(trust_remote_code):
            modes = {"fresh": fresh, "resume": resume, "allow_changed": allow_changed or [], "quick": quick}
            if dry_run and place is None:
                modes["num_processes"] = num_processes
            _run(composed, place, dry_run=dry_run, **modes)
    except UserError as error:
        raise composed.located(error) from error


@contextmanager
def _told_once_a_host(place: Place | None) -> Iterator[None]:
    """A block that the processes of a host leave with the same error, before they have met."""
    try:
        yield
    except UserError as error:
        error.is_shared = place is not None and place.local_rank > 0
        raise


def _require_here(composed: "ComposedRecipe", place: Place | None, *, fresh: bool, resume: bool, dry_run: bool) -> None:
    """What can be refused without torch, whose import takes seconds."""
    from simpo_cli.data.prepare import require_inputs
    from simpo_cli.run.folder import require_usable

    require_inputs(composed.recipe)
    if not dry_run and (place is None or place.is_first):  # which makes the folder
        require_usable(Path(composed.recipe.output_dir), fresh=fresh, resume=resume)


def _num_processes(wanted: "DistributedRecipe", place: Place | None) -> int:
    """How many processes train: as many as a launcher started, or as we are to start.

    Raises:
        UserError: the launcher started another number of them, or there are fewer cards.
    """
    key, number = "distributed.num_processes", wanted.num_processes
    if place is not None:
        if number not in ("auto", place.world_size):
            raise UserError(
                f"{key} is {number}, and the launcher started {place.world_size}.",
                "Leave it at auto, or have the launcher start as many.",
                key=key,
            )
        return place.world_size
    if wanted.strategy == "none" or number == 1:
        return 1
    cards = num_cards()
    if number == "auto":
        return max(cards, 1)
    if 0 < cards < number:
        raise UserError(
            f"{key} is {number}, and {cards} {'card is' if cards == 1 else 'cards are'} visible.",
            "One process drives one card: leave it at auto, or see CUDA_VISIBLE_DEVICES.",
            key=key,
        )
    return number


def _launch(composed: "ComposedRecipe", num_processes: int) -> int:
    """Start the processes, and once more where a step of theirs ran out of memory."""
    from simpo_cli.run.folder import OUT_OF_MEMORY

    memory = Path(composed.recipe.output_dir) / OUT_OF_MEMORY
    before = _written_at(memory)

    def may_restart() -> bool:
        if _written_at(memory) in (None, before):
            return False
        say("a step ran out of memory: resuming once with smaller micro-batches")
        return True

    is_auto = composed.recipe.distributed.num_processes == "auto"
    say(f"{num_processes} processes{', one for each visible card' if is_auto else ''}")
    return launch(same_command(), num_processes, may_restart)


def _written_at(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.exists() else None


def _run(composed: "ComposedRecipe", place: Place | None, *, dry_run: bool, **modes: Any) -> None:
    from simpo_cli.report.watch import WithReport, watch
    from simpo_cli.run.events import Unwatched

    if place is not None and not place.is_first:
        with importing():
            from simpo_cli.train.session import train as run

        run(composed, observer=Unwatched(), dry_run=dry_run, **modes)
        return
    terminal = watch()
    observer = WithReport(terminal, Path(composed.recipe.output_dir))
    terminal.open()
    try:
        with importing():
            from simpo_cli.train.session import train as run

        outcome = run(composed, observer=terminal if dry_run else observer, dry_run=dry_run, **modes)
        if outcome is None and not dry_run:
            observer.was_complete()
        if isinstance(outcome, dict):
            from simpo_cli.report.console import err
            from simpo_cli.report.plan_view import print_plan

            print_plan(err, outcome)
    except UserError:
        observer.ended_early()
        raise
    finally:
        observer.close()
