"""How the C library hands out memory on a CPU.

A micro-batch takes about a megabyte a token and gives all of it back at its end. glibc passes that on to the system,
and the next micro-batch has to have every page cleared again: on a virtual machine a tenth to a fifth of a training
step (seen: 250,000 page faults a step of 16 pairs, 3 with the settings below). What is freed is therefore kept for the
next micro-batch, in one arena for the threads of forward and backward pass, so that each finds what the other freed.
"""

import ctypes
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
