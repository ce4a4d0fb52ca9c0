"""`simpo stats`: preference pairs counted and measured."""

from pathlib import Path
from typing import Annotated

import typer


def stats(
    data: Annotated[list[str], typer.Argument(metavar="DATA...", help="Files of preference pairs, or builtin:guide.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    output: Annotated[Path | None, typer.Option("--output", help="Write the JSON document to this file.")] = None,
) -> None:
    """Describe preference pairs: counts and lengths."""
    from simpo_cli.audit.run import describe

    describe(data, as_json=as_json, output=output)
