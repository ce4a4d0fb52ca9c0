"""Memory that runs out: told apart from other errors, and said with what to change."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from simpo_cli.errors import ExitCode, UserError

# What torch's allocator of a CPU says in its RuntimeError, on Linux and macOS, and on Windows.
_SAID_BY_ALLOCATOR = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


class NoMemoryError(UserError):
    """The memory did not suffice (exit code 4); the weights are those of the last whole step."""


@contextmanager
def memory_for(what: str, fix: str) -> Iterator[None]:
    """Turn an allocation that fails in the block into an error that says what was at work.

    Args:
        what: such as `step 7: a micro-batch of 8,192 tokens`.
        fix: what to change.

    Raises:
        NoMemoryError: an allocation failed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        for cause in (error, error.__context__):  # frames that ended hold tensors, and the memory is wanted for saving
            if cause is not None:
                traceback.clear_frames(cause.__traceback__)
        raise NoMemoryError(f"{what} does not fit in memory.", fix, exit_code=ExitCode.ENVIRONMENT) from error


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID_BY_ALLOCATOR)
