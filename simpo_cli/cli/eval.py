"""`simpo eval`: a model measured on held-out pairs."""

from pathlib import Path
from typing import Annotated

import typer

from simpo_cli.errors import UserError


def evaluate(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A run folder, a recipe, or a model.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values that replace those of the recipe.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
    output: Annotated[Path | None, typer.Option("--output", help="Write the JSON document to this file.")] = None,
) -> None:
    """Score held-out pairs: loss, accuracy with its interval, margin, log-probs."""
    from simpo_cli.cli.quiet import quiet_libraries
    from simpo_cli.report.report_file import json_text, require_replaceable, write_report

    if output is not None:
        require_replaceable(output)
    quiet_libraries()
    from simpo_cli.evaluate.run import evaluate_target

    try:
        evaluation = evaluate_target(target, overrides or [])
    except UserError as error:
        raise _located(error, target, overrides or []) from error
    document = evaluation.summary.as_json(model=evaluation.model, data=evaluation.data)
    if output is not None:
        write_report(output, document)
    if as_json:
        print(json_text(document))
    elif output is None:
        from simpo_cli.report.console import out
        from simpo_cli.report.eval_view import print_eval

        print_eval(out, document)


def _located(error: UserError, target: str, overrides: list[str]) -> UserError:
    """The error with the line of the recipe that it is about, where the target is a recipe."""
    from simpo_cli.recipe import compose

    if Path(target).is_dir():
        return error  # a run or a model: there is no recipe that the person edits
    try:
        return compose(target, overrides).located(error)
    except UserError:
        return error
