"""How memory is handed out: by the C library on a CPU, by torch on a card. Nothing here imports torch.

CPU: a micro-batch takes about a megabyte a token and gives all of it back at its end. glibc passes that on to the
system, and the next micro-batch has to have every page cleared again: on a virtual machine a tenth to a fifth of a
training step (seen: 250,000 page faults a step of 16 pairs, 3 with the settings below). What is freed is therefore kept
for the next micro-batch, in one arena for the threads of forward and backward pass, so that each finds what the other
freed. Small blocks that were freed are joined with what is free around them, and not put aside for their thread: the
alignment of a tensor leaves such a block before it, and with these put aside what is free stays in pieces that fit no
tensor (seen: adapters on SmolLM2-135M, layers computed again, micro-batches of 1,024 tokens: 1.75 GB, and 0.97 so).

Card: torch keeps what is freed in segments of fixed size, and micro-batches of ever other lengths leave gaps in them
that fit nothing. Segments that can grow have no such gaps.
"""

import ctypes
import os
import platform
import sys
from contextlib import suppress

_TUNABLES, _NO_CACHE = "GLIBC_TUNABLES", "glibc.malloc.tcache_count=0"
_CARDS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's and AMD's drivers, and Windows' for Linux
# of malloc.h
_MXFAST, _TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = 1, -1, -4, -8
_NEVER = 2**31 - 1


def has_cards() -> bool:
    """Whether a driver of cards is here; torch, which knows more, takes seconds to import."""
    return any(map(os.path.exists, _CARDS))


def keep_freed_memory() -> bool:
    """Have freed memory stay with this process until it ends; says whether the C library takes the settings."""
    if not _has_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(name, value)
        for name, value in ((_MXFAST, 0), (_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER))
    )


def give_back_freed_memory() -> None:
    """Give the system what was freed so far; what is freed from now on stays again."""
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def begin_without_cache() -> None:
    """Have this process begin again with a C library that puts nothing aside for a thread.

    It reads that setting when a process begins, so call this before anything large is imported. Nothing is done where
    a card is likely to compute, or where the person set it already.
    """
    before = os.environ.get(_TUNABLES, "")
    if "tcache" in before or not _has_glibc() or has_cards():
        return
    os.environ[_TUNABLES] = ":".join(filter(None, (before, _NO_CACHE)))
    with suppress(OSError):  # forbidden here: it goes on as it is
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def expand_segments() -> None:
    """Have torch use segments that can grow on a card, unless the person set how it hands out memory.

    Call before torch is imported. PYTORCH_CUDA_ALLOC_CONF is the older name, which torch still reads first.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
