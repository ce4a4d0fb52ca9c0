"""The three streams that a command was given: also those that are closed, full, or gone while it runs.

A closed descriptor is the next one that a file gets, and what is printed would end up in that file: it is filled first.
"""

import io
import os
import sys
from contextlib import suppress
from typing import Any

from simpo_cli.errors import ExitCode, UserError


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
