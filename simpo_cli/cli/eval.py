"""`simpo eval`: a model measured on held-out pairs."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A recipe, a run folder or a model.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values that replace those of the recipe.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    output: Annotated[Path | None, typer.Option("--output", help="Write the JSON document to this file.")] = None,
) -> None:
    """Score held-out pairs with a model."""
    from simpo_cli.evaluate.run import evaluate_target

    evaluate_target(target, overrides or [], as_json=as_json, output=output)
