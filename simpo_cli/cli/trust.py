"""The option of every command that loads a model: whether the model's own code may be run."""

from typing import Annotated

import typer

from simpo_cli.errors import UserError
from simpo_cli.model.own_code import FLAG

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
