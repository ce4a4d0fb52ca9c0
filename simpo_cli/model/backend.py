"""What each type of device can do: one row a type, asked by whatever depends on it.

A row says what torch offers there by its source and documentation. Whether what comes out is right is for the
self-check, on every device alike. A build of torch for ROCm calls its devices `cuda` and has a row of its own.
"""

import gc
from dataclasses import dataclass, replace

import psutil
import torch

from simpo_cli.model.allocator import give_back_freed_memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """The abilities of a type of device."""

    name: str
    was_run: bool  # by the authors; else a run says once that it was not
    attention: str  # how prompts are shared, in the types that the kernel knows
    own_memory: bool  # apart from that of the host
    counts_peak: bool  # torch's allocator knows the most that it held
    pinned: bool  # copies from page-locked memory on streams of torch.cuda
    compiles: bool  # whether `model.compile: auto` may try
    takes_splits: bool  # the variable-length kernel takes the argument that keeps keys together
    fused_adamw: bool
    widest: torch.dtype  # floating-point type
    most_tokens: int  # of a micro-batch: more gain nothing
    tokens_worth_keeping: int  # where so many fit, computing layers again gains nothing


_CPU = Backend(
    name="cpu",
    was_run=True,
    attention="torch's fused kernel over prompt and response by themselves",
    own_memory=False,
    counts_peak=False,
    pinned=False,
    compiles=False,
    takes_splits=False,
    fused_adamw=True,
    widest=torch.float64,
    most_tokens=1024,  # seen: 512 to 2,048 are as fast
    tokens_worth_keeping=512,
)
_CUDA = Backend(
    name="cuda",
    was_run=False,
    attention="torch's variable-length FlashAttention",
    own_memory=True,
    counts_peak=True,
    pinned=True,
    compiles=True,
    takes_splits=True,
    fused_adamw=True,
    widest=torch.float64,
    most_tokens=16384,
    tokens_worth_keeping=8192,
)
_ROCM = replace(_CUDA, name="rocm", takes_splits=False)
_XPU = replace(_ROCM, name="xpu", attention="plain torch, one segment at a time", pinned=False, compiles=False)
_MPS = replace(_XPU, name="mps", own_memory=False, counts_peak=False, widest=torch.float32)
BACKENDS = {row.name: row for row in (_CPU, _CUDA, _ROCM, _XPU, _MPS)}


def backend_of(device: torch.device) -> Backend:
    """The row of a device; that of a CPU, which asks least of torch, where there is none."""
    return BACKENDS.get("rocm" if device.type == "cuda" and torch.version.hip else device.type, _CPU)


def free_bytes(device: torch.device) -> int:
    """What is free beside what torch has cached: on the device, or of the memory that it shares with the host."""
    if backend_of(device).own_memory:
        free, _ = torch.get_device_module(device).mem_get_info(device)
        return int(free)
    free = psutil.virtual_memory().available
    if device.type == "mps":
        return int(min(free, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()))
    return int(free)


def available_bytes(device: torch.device) -> int:
    """Free memory of the device: of the card, or of the machine.

    What torch has cached of a card's memory counts as free: it is given back first.
    """
    if device.type != "cpu":
        release_memory()
    return free_bytes(device)


def release_memory() -> None:
    """Give back what nothing holds any more, what is kept for later allocations included."""
    gc.collect()
    give_back_freed_memory()
    for module in (torch.cuda, torch.xpu, torch.mps):
        if module.is_available():
            module.empty_cache()


def multiplies_in_bf16(kind: str) -> bool:
    """Whether the device multiplies matrices faster in bf16 than in float32.

    Of CPUs those with tiles (AMX) do. AVX-512's dot products of bf16 alone do not: on a Xeon with them and without
    tiles, products of (2048, 576) by (576, 1536) ran at 154 GFLOP/s in bf16 and at 269 in float32 (two threads, best of
    ten). Apple's first two generations emulate bf16, and torch does not say which of them a device is.
    """
    match kind:
        case "cuda" | "xpu":
            return bool(torch.get_device_module(kind).is_bf16_supported(including_emulation=False))
        case "cpu":
            return torch.cpu._is_amx_tile_supported()
    return False
