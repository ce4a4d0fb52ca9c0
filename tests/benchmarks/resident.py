"""The most memory that this process has held. Needs nothing, so that a process that measures itself stays small."""

import platform
import resource
from pathlib import Path


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
