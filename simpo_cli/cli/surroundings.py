"""What a command needs around it before it does anything: address space, a working directory, and its
three streams, also those that are closed, full, or gone while it runs.

A closed descriptor is the next one that a file gets, and what is printed would end up in that file: it is filled first.
"""

import io
import os
import resource
import sys
from contextlib import suppress
from typing import Any

from simpo_cli.errors import ExitCode, UserError

PYTHON_BYTES, COMMAND_BYTES, TORCH_BYTES = 64_000_000, 500_000_000, 2_000_000_000
"""Address space under which Python cannot load the command, the data's libraries abort or hang, and torch does."""

MORE_ROOM = "Raise the limit, as with: ulimit -v unlimited"
_WITH_TORCH = {"train", "eval", "inspect", "export", "chat", "--model"}


def require_python() -> None:
    """Leave in words where Python would in the middle of an import."""
    if (limit := _limit()) is not None and limit < PYTHON_BYTES:
        sys.stderr.write(f"Error: {_too_little(limit, COMMAND_BYTES)}\n  {MORE_ROOM}\n")
        raise SystemExit(ExitCode.ENVIRONMENT)


def require_surroundings(args: list[str]) -> None:
    """Refuse (UserError, exit code 4) to start where libraries would abort, hang, or not find where they are."""
    try:
        os.getcwd()  # removed, or not to be looked at
    except OSError as error:
        raise UserError(
            f"the working directory cannot be used: {error.strerror}.",
            "Go to a folder that exists (cd), and run the command again.",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error
    needed = TORCH_BYTES if _WITH_TORCH & set(args) else COMMAND_BYTES
    if (limit := _limit()) is not None and limit < needed:
        raise UserError(_too_little(limit, needed), MORE_ROOM, exit_code=ExitCode.ENVIRONMENT)


def out_of_address_space(error: BaseException) -> UserError | None:
    """What to say of a failure that a limit has made; None where there is no limit, or it is another failure."""
    limit = _limit()
    if limit is None or not (isinstance(error, MemoryError) or "failed to map segment" in str(error)):
        return None
    return UserError(_too_little(limit), MORE_ROOM, exit_code=ExitCode.ENVIRONMENT)


def _too_little(limit: int, needed: int | None = None) -> str:
    more = "the command needs more" if needed is None else f"this needs at least {needed / 1e6:,.0f} MB"
    return f"the address space is limited to {limit / 1e6:,.0f} MB (ulimit -v), and {more}."


def _limit() -> int | None:
    """Bytes of address space that the process may have; None where there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def take_streams() -> None:
    """Put streams of ours in the place of Python's; called once, by the process that is the command."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # a descriptor that nothing can be written to tells, once something is
            os.open(os.devnull, os.O_WRONLY if descriptor == 2 else os.O_RDONLY)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    sys.stdout, sys.stderr = _stream(_Answer(1, "w", closefd=False)), _stream(_Remarks(2, "w", closefd=False))


def give_up_stdout() -> None:
    """Send what is still to be written there nowhere, also by the interpreter as it leaves."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Answer(io.FileIO):
    """stdout: what a command was asked for, so that not being able to write it is an error."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            give_up_stdout()
            raise UserError(
                f"the output cannot be written: {error.strerror}.",
                "Send it somewhere else, such as > FILE on a disk with space.",
                exit_code=ExitCode.ENVIRONMENT,
            ) from error


class _Remarks(io.FileIO):
    """stderr: where nobody can be told, work goes on untold."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError:
            return len(data)


def _stream(raw: io.FileIO) -> io.TextIOWrapper:
    """A text stream as Python would have made it: encoding, errors and buffering of the one that it replaces."""
    before = sys.stdout if raw.fileno() == 1 else sys.stderr
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before else "utf-8",
        errors=before.errors if before else "backslashreplace",
        line_buffering=raw.fileno() == 2 or raw.isatty(),
    )
