"""What a person did, said so that they can mend it: where, what, how. Imports nothing of ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class ExitCode(IntEnum):
    """What the shell is told; a part of the public contract."""

    DONE = 0
    CRASH = 1  # our bug
    USAGE = 2  # command line, recipe or data
    GATE = 3  # a check asked for with --fail-on did not pass
    ENVIRONMENT = 4  # disk, lock, memory, missing extra, no usable checkpoint
    NUMBERS = 5  # a loss or gradient that is not finite
    SAVED = 75  # stopped by a signal, everything saved
    INTERRUPTED = 130


class UserError(Exception):
    """A mistake that the person in front of the terminal can mend; printed without a traceback.

    Args:
        problem: one sentence that names the value or thing that is wrong.
        fix: one sentence that says how to mend it.
        where: the place, such as `run.yaml:7`, `override 2` or `prefs.jsonl:17`; empty when there is none.
        key: the dotted key of the recipe that it is about, such as `data.max_length`; empty when it is about none.
        exit_code: what the shell is told.
    """

    def __init__(
        self, problem: str, fix: str, *, where: str = "", key: str = "", exit_code: ExitCode = ExitCode.USAGE
    ) -> None:
        self.problem = problem
        self.fix = fix
        self.where = where
        self.key = key
        self.exit_code = exit_code
        super().__init__(f"{where}: {problem}" if where else problem)

    def __str__(self) -> str:
        first_line = f"{self.where}: {self.problem}" if self.where else self.problem
        return f"{first_line}\n  {self.fix}" if self.fix else first_line


@contextmanager
def about(key: str) -> Iterator[None]:
    """What is refused inside is about this key of the recipe, unless the error names a nearer one."""
    try:
        yield
    except UserError as error:
        error.key = error.key or key
        raise
