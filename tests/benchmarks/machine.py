"""The machine: what it is, how fast it multiplies matrices, its free memory and what this process took of it."""

import os
import platform
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.benchmarks.process import peak_resident_bytes

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
_SIZE = 2048


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, card; nothing that names this one machine."""
    facts: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "instructions": [],
    }
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines()]
        fields = {name.strip(): value.strip() for name, _, value in lines}
        facts["processor"] = fields.get("model name", facts["processor"])
        facts["instructions"] = [flag for flag in _FLAGS if flag in fields.get("flags", "").split()]
    if torch.cuda.is_available():
        facts["card"] = torch.cuda.get_device_name()
    return facts


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of those packages that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def product_speed(device: torch.device, dtype: torch.dtype = torch.float32, seconds: float = 1.0) -> float:
    """Floating-point operations a second of a large square matrix product: the best one within the time given."""
    a = torch.randn(_SIZE, _SIZE, device=device, dtype=dtype)
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        a @ a
        finish(device)
        best = min(best, time.perf_counter() - started)
    return 2 * _SIZE**3 / best


def peak_bytes(device: torch.device) -> int:
    """Most memory that this process has held: on the card, or resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_resident_bytes()


def available_bytes() -> int:
    """Memory that can be had without anyone being put out; of the card, where there is one, all of it."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(psutil.virtual_memory().available)


def finish(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
