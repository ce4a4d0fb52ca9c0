"""What a command needs around it before it does anything: address space, and a working directory."""

import os
import resource
import sys

from simpo_cli.errors import ExitCode, UserError

PYTHON_BYTES, COMMAND_BYTES, TORCH_BYTES = 64_000_000, 500_000_000, 2_000_000_000
"""Address space under which Python cannot load the command, the data's libraries abort or hang, and torch does."""

MORE_ROOM = "Raise the limit, as with: ulimit -v unlimited"
_WITH_TORCH = {"train", "eval", "inspect", "export", "--model"}


def require_python() -> None:
    """Leave in words where Python would in the middle of an import."""
    if (limit := _limit()) is not None and limit < PYTHON_BYTES:
        sys.stderr.write(f"Error: {_too_little(limit, COMMAND_BYTES)}\n  {MORE_ROOM}\n")
        raise SystemExit(ExitCode.ENVIRONMENT)


def require_surroundings(args: list[str]) -> None:
    """Refuse to start where libraries would abort, hang, or not find where they are.

    Raises:
        UserError: exit code 4.
    """
    require_working_directory()
    needed = TORCH_BYTES if _WITH_TORCH & set(args) else COMMAND_BYTES
    if (limit := _limit()) is not None and limit < needed:
        raise UserError(_too_little(limit, needed), MORE_ROOM, exit_code=ExitCode.ENVIRONMENT)


def require_working_directory() -> None:
    """Refuse to work in a folder that was removed, or that may not be looked at."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            f"the working directory cannot be used: {error.strerror}.",
            "Go to a folder that exists (cd), and run the command again.",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error


def out_of_address_space(error: BaseException) -> UserError | None:
    """What to say of a failure that a limit has made; None where there is no limit, or it is another failure."""
    limit = _limit()
    if limit is None or not (isinstance(error, MemoryError) or "failed to map segment" in str(error)):
        return None
    return UserError(
        f"the address space is limited to {limit / 1e6:,.0f} MB (ulimit -v), and the command needs more.",
        MORE_ROOM,
        exit_code=ExitCode.ENVIRONMENT,
    )


def _too_little(limit: int, needed: int) -> str:
    limited = f"the address space is limited to {limit / 1e6:,.0f} MB (ulimit -v)"
    return f"{limited}, and this needs at least {needed / 1e6:,.0f} MB."


def _limit() -> int | None:
    """Bytes of address space that the process may have; None where there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft
