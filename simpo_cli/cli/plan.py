"""`simpo plan`: what a run will take, and which devices would do, before anything is loaded."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from simpo_cli.cli.options import (
    AsJson,
    Output,
    Overrides,
    RecipeName,
    TrustRemoteCode,
    importing,
    print_json,
    shows_work,
)
from simpo_cli.errors import UserError
from simpo_cli.model.remote_code import trusting

if TYPE_CHECKING:
    from simpo_cli.recipe.schema import Recipe


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    time: Annotated[
        bool, typer.Option("--time", help="Load the model, time some micro-batches here, and expect the run's time.")
    ] = False,
    as_json: AsJson = False,
    output: Output = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Say what a run will take: steps, tokens, memory, disk, and which devices would do. No weight is read.

    The devices need not be here; their memory is known from the shapes of the model. Of a model of the hub no weights
    are fetched.
    """
    from simpo_cli.recipe.composition import compose
    from simpo_cli.report.page import require_replaceable, write_report

    if output is not None:
        require_replaceable(output)
    composed = compose(recipe, overrides or [])
    try:
        with trusting(trust_remote_code):
            document = _planned(composed.recipe, is_timed=time)
    except UserError as error:
        raise composed.located(error) from error
    if output is not None:
        write_report(output, document)
    if as_json:
        print_json(document)
    elif output is None:
        from simpo_cli.report.console import out
        from simpo_cli.report.plan_view import print_plan

        print_plan(out, document)


@shows_work
def _planned(recipe: "Recipe", *, is_timed: bool) -> dict[str, Any]:
    from simpo_cli.data.prepare import require_inputs

    require_inputs(recipe)
    with importing():
        from simpo_cli.train.forecast import forecast, survey

    surveyed = survey(recipe, weights=is_timed)
    if not is_timed:
        return forecast(surveyed)
    from simpo_cli.train.timing import measure

    return forecast(surveyed, measure(surveyed))
