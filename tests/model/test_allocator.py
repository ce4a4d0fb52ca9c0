"""Freed memory stays with the process: seen from a fresh one, by the pages that the system had to clear."""

import os
import subprocess
import sys

import pytest

from simpo_cli.model.allocator import expand_segments, keep_freed_memory

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


@pytest.mark.parametrize(
    ("is_set", "name", "value"),
    [
        ({}, "PYTORCH_ALLOC_CONF", "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "PYTORCH_ALLOC_CONF", "max_split_size_mb:64"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "PYTORCH_ALLOC_CONF", None),
    ],
)
def test_segments_can_grow_unless_somebody_set_otherwise(
    is_set: dict[str, str], name: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(variable, raising=False)
    for variable, setting in is_set.items():
        monkeypatch.setenv(variable, setting)
    expand_segments()
    assert os.environ.get(name) == value


_LOAD = """
import os, sys
from simpo_cli.cli.main import run
assert run(["--version"]) == 0
assert "torch" not in sys.modules
import torch
torch.zeros(1)
print(os.environ['PYTORCH_ALLOC_CONF'], file=sys.stderr)
"""


def test_a_command_sets_it_before_torch_is_loaded_and_torch_takes_it_in_silence() -> None:
    free = {name: value for name, value in os.environ.items() if not name.endswith("ALLOC_CONF")}
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", _LOAD], capture_output=True, text=True, check=True, env=free
    )
    assert done.stderr.splitlines() == ["expandable_segments:True"]
