"""Memory that runs out, told apart from other errors and named after what was at work."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from simpo_cli.errors import ExitCode, UserError

# In the RuntimeErrors of torch: of its allocator for CPUs, on Linux and macOS and on Windows, and of CUDA's libraries,
# whose memory does not come out of torch's allocator for cards.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",  # of segments that can grow, whose memory the driver maps
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)


class OutOfMemoryError(UserError):
    """The memory did not suffice (exit code 4); the weights are those of the last whole step."""


@contextmanager
def memory_for(what: str, fix: str) -> Iterator[None]:
    """Turn an allocation that fails in the block into an error that says what was at work.

    Args:
        what: such as `step 7: a micro-batch of 8,192 tokens`.

    Raises:
        OutOfMemoryError: an allocation failed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        cause: BaseException | None = error
        while cause is not None:  # frames that ended hold tensors, and the memory is wanted
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__context__
        raise OutOfMemoryError(f"{what} does not fit in memory.", fix, exit_code=ExitCode.ENVIRONMENT) from error


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _OUT_OF_MEMORY)
