"""How memory is handed out: by the C library on a CPU, by torch on a card. Nothing here imports torch.

CPU: a micro-batch takes about a megabyte a token and gives all of it back at its end. glibc passes that on to the
system, and the next micro-batch has to have every page cleared again: on a virtual machine a tenth to a fifth of a
training step (seen: 250,000 page faults a step of 16 pairs, 3 with the settings below). What is freed is therefore kept
for the next micro-batch, in one arena for the threads of forward and backward pass, so that each finds what the other
freed.

Card: torch keeps what is freed in segments of fixed size, and micro-batches of ever other lengths leave gaps in them
that fit nothing. Segments that can grow have no such gaps.
"""

import ctypes
import os
import platform

# of malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have freed memory stay with this process until it ends; says whether the C library takes the settings."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(name, value) for name, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER)))


def expand_segments() -> None:
    """Have torch use segments that can grow on a card, unless the person set how it hands out memory.

    Call before torch is imported. PYTORCH_CUDA_ALLOC_CONF is the older name, which torch still reads first.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
