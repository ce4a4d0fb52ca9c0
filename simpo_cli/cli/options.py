"""What commands share: options that several have, options listed in groups, and what they say to the terminal."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from simpo_cli.errors import UserError
from simpo_cli.model.remote_code import FLAG

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values that replace those of the recipe.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Output = Annotated[Path | None, typer.Option("--output", metavar="FILE", help="Write the JSON document to this file.")]
TrustRemoteCode = Annotated[
    bool, typer.Option(FLAG, help="Run the Python code that a model brings with it, if it needs that; read it first.")
]


def require_model(asked: bool, *, loads_one: bool, fix: str) -> None:
    """Refuse the flag where no model is loaded, so that nobody believes that it did something.

    Raises:
        UserError: with the `fix`, which says how to have the command load one.
    """
    if asked and not loads_one:
        raise UserError(f"{FLAG} is about the code of a model, and none is loaded.", fix)


def say(text: str, style: str = "") -> None:
    """A line on stderr, however long."""
    from simpo_cli.report.console import err, printable

    err.print(printable(text, keep_newlines=True), style=style, soft_wrap=True)


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    from simpo_cli.report.page import json_text

    print(json_text(document))


class GroupedCommand(TyperCommand):
    """A command whose help lists options by their `rich_help_panel`, which typer itself does only with rich markup."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panel: str | None = getattr(parameter, "rich_help_panel", None)  # --help has none
                groups.setdefault(panel or usual, []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)
