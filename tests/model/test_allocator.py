"""Freed memory stays with the process: seen from a fresh one, by the pages that the system had to clear."""

import subprocess
import sys

import pytest

from simpo_cli.model.allocator import keep_freed_memory

_COUNT = """
import resource
import torch
from simpo_cli.model.allocator import keep_freed_memory
def use():
    arrays = [torch.ones(1 << 20) for _ in range(64)]  # 256 MB
def page_faults():
    use()
    use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    use()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(page_faults())
assert keep_freed_memory()
print(page_faults())
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="needs glibc")
def test_memory_that_was_freed_is_used_again_without_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 10 * after
