"""`simpo tune`: a study over the numbers of a recipe."""

import os
import shlex
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simpo_cli.cli.options import (
    AsJson,
    Overrides,
    RecipeName,
    TrustRemoteCode,
    importing,
    num_cards,
    print_json,
    say,
    shows_work,
    take_card,
)
from simpo_cli.cli.pairs import Rule, RuleTimeout
from simpo_cli.errors import UserError
from simpo_cli.model.remote_code import trusting

if TYPE_CHECKING:
    from simpo_cli.distributed.place import Place
    from simpo_cli.recipe.composition import ComposedRecipe

_Rule = tuple[str | None, float]  # its name, and seconds for an answer


def tune(
    recipe: RecipeName,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a study of this name, or start it.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Set a study of this name aside, and start anew.")] = False,
    join: Annotated[
        bool, typer.Option("--join", help="Help a study that another process or host leads, in the same folder.")
    ] = False,
    rule: Rule = None,
    rule_timeout: RuleTimeout = 30.0,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Search for better numbers on held-out evidence, confirm the best ones, and write them as a recipe."""
    from simpo_cli.data.prepare import require_inputs
    from simpo_cli.distributed.launch import launch, same_command
    from simpo_cli.distributed.place import place_in
    from simpo_cli.recipe.composition import compose
    from simpo_cli.run.folder import RECIPE
    from simpo_cli.tune.folder import BEST, study_path
    from simpo_cli.versions import require_extra

    if resume + fresh + join > 1:
        raise UserError("--resume, --fresh and --join exclude one another.", "Give one of them.")
    place, given = place_in(), overrides or []
    composed = compose(recipe, given)
    require_extra("optuna", "tune", "simpo tune")
    try:
        require_inputs(composed.recipe)
        if place is None:
            _claim(composed, given, (rule, rule_timeout), {"resume": resume, "fresh": fresh, "join": join})
            wanted = composed.recipe.distributed.num_processes
            number = max(1, num_cards()) if wanted == "auto" else wanted
            if number > 1:
                raise typer.Exit(launch(same_command(), number, lambda: False))
        else:
            _leave_place(place)
            join = join or not place.is_first
        with trusting(trust_remote_code):
            document = _tuned(composed, given, (rule, rule_timeout), leads=not join)
    except UserError as error:
        raise composed.located(error) from error
    if place is not None and not place.is_first:
        return
    if as_json:
        print_json(document)
    else:
        from simpo_cli.report.console import out
        from simpo_cli.report.study_view import print_study

        print_study(out, document)
    best = study_path(composed.recipe) / BEST
    if best.is_file():
        from simpo_cli.report.study_page import write_study_report

        say(f"recipe  {best}")
        say(f"report  {write_study_report(best.parent)}")
        words = ["train", str(best)] if document["verdict"]["found"] == "better" else ["train", recipe, *given]
        if document["winner"]["measures"]["reasons"]:  # nothing that was tried left the answers whole
            words = ["stats", "--recipe", str(best.with_name(RECIPE))]
        say(f"next    {shlex.join(['simpo', *words])}")


def _say(line: str) -> None:
    """What a study did, wrapped on a terminal and whole in a log."""
    from rich.text import Text

    from simpo_cli.report.console import err, print_wrapped

    if err.is_terminal:
        print_wrapped(err, Text("  "), line, style="dim")
    else:
        say(line)


def _leave_place(place: "Place") -> None:
    """Be a process by itself, on a card of its own: each trial is trained by one."""
    take_card(place.local_rank)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)


@shows_work
def _claim(composed: "ComposedRecipe", overrides: list[str], rule: _Rule, how: dict[str, Any]) -> None:
    with importing():
        from simpo_cli.tune.session import claim
        from simpo_cli.tune.study import Tuning
    with ExitStack() as stack:
        claim(Tuning(composed, overrides, _scorer(rule, stack)), **how)


@shows_work
def _tuned(composed: "ComposedRecipe", overrides: list[str], rule: _Rule, *, leads: bool) -> dict[str, Any]:
    with importing():
        from simpo_cli.tune.session import tune as run
        from simpo_cli.tune.study import Tuning
    with ExitStack() as stack:
        return run(Tuning(composed, overrides, _scorer(rule, stack)), say=_say, leads=leads)


def _scorer(rule: _Rule, stack: ExitStack) -> Any:
    from simpo_cli.pairs.rule import Rule as ScoredByRule

    spec, timeout = rule
    return None if spec is None else stack.enter_context(closing(ScoredByRule(spec, timeout=timeout)))
