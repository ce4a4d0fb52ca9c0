"""Freed memory stays with the process: seen from a fresh one, by the pages that the system had to clear."""

import subprocess
import sys

import pytest

from simpo_cli.model.allocator import keep_freed_memory

_COUNT = """
import resource, sys
import torch
from simpo_cli.model.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def use():
    arrays = [torch.ones(1 << 20) for _ in range(64)]  # 256 MB
use()
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(setting: str) -> int:
    return int(
        subprocess.run([sys.executable, "-c", _COUNT, setting], capture_output=True, text=True, check=True).stdout
    )


@pytest.mark.skipif(not keep_freed_memory(), reason="needs glibc")
def test_memory_that_was_freed_is_used_again_without_the_system() -> None:
    assert _page_faults("leave") > 10 * _page_faults("keep")
