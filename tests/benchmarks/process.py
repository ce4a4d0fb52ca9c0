"""Seconds and memory that work takes. Standard library only, so that a process that is measured stays small."""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple


class Took(NamedTuple):
    """Seconds that something took: by the clock, and of processor, of this process and of its children that ended."""

    clock: float
    processor: float


def timed(work: Callable[[], object]) -> Took:
    """What it takes to do some work."""
    started, before = time.perf_counter(), _processor_seconds()
    work()
    return Took(time.perf_counter() - started, _processor_seconds() - before)


def _processor_seconds() -> float:
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def in_own_process(module: str, *task: str, **environment: str) -> dict[str, Any]:
    """The JSON object that a module of the benchmarks prints when it is asked for `--one` task."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", "--one", *task]
    done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def peak_resident_bytes() -> int:
    """Most resident memory so far.

    The high-water mark of the address space, where the system has it: `ru_maxrss` may begin with that of the process
    that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def spread(values: Sequence[float], digits: int = 2, to: str = " to ", unit: str = "") -> str:
    """Median and range, such as `2.50 (2.41 to 2.66)`."""
    return f"{median(values):,.{digits}f}{unit} ({min(values):,.{digits}f}{to}{max(values):,.{digits}f})"
