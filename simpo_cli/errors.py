"""What a person did, said so that they can mend it: where, what, how. Imports nothing of ours."""

import re
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
        self.is_shared = False  # by all processes of a run, so that the first of them tells it
        self.is_consequence = False  # of what another process of the run tells
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


# what messages call a thing, and what to say to callers of the library: they have no recipe and no options
_IN_PYTHON = {
    r"Mend the record, or set data\.on_bad_record[^.]*\.": "Mend the record, or leave it out.",
    r"Set data\.on_bad_record[^.]*\.": "Mend the record, or leave it out.",
    r", or set data\.on_no_signal[^.]*": ", or leave it out",
    r"\bdata\.(max_length|max_prompt_length)\b": r"\1",
    r"\bloss\.type\b": "loss_type",
    r"\bloss\.(beta|gamma|label_smoothing|sft_weight)\b": r"\1",
    r"\btrain\.tokens_per_microbatch\b": "batch_size",
    r"\btrain\.(max_grad_norm|precision)\b": r"\1",
    r"(\btrain\.|\b)learning_rate\b": "lr",
}


def in_python(text: str) -> str:
    """A text that names keys of a recipe, with the names of `SimPOConfig` in their place."""
    for pattern, replacement in _IN_PYTHON.items():
        text = re.sub(pattern, replacement, text)
    return text


def for_python(error: UserError) -> UserError:
    """An error as a caller of the library can act on it."""
    problem, fix = in_python(error.problem), in_python(error.fix)
    return UserError(problem, fix, where=error.where, exit_code=error.exit_code)
