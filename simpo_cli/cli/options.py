"""What commands share in their help: options that several have, and options listed in groups."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from simpo_cli.errors import UserError
from simpo_cli.model.remote_code import FLAG

TrustRemoteCode = Annotated[
    bool, typer.Option(FLAG, help="Run the Python code that a model brings with it, if it needs that; read it first.")
]


def require_model(asked: bool, *, loads_one: bool, fix: str) -> None:
    """Refuse the flag where no model is loaded, so that nobody believes that it did something.

    Args:
        asked: whether the flag was given.
        loads_one: whether the command will load a model.
        fix: how to have it load one.

    Raises:
        UserError: the flag would do nothing.
    """
    if asked and not loads_one:
        raise UserError(f"{FLAG} is about the code of a model, and none is loaded.", fix)


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
