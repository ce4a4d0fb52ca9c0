"""Memory that was freed is used again, by a C library and a torch that are told so in time."""

import os
import subprocess
import sys

import pytest

from simpo_cli.model import allocator
from simpo_cli.model.allocator import begin_without_cache, expand_segments, keep_freed_memory

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


_LAYERS = """
import sys
from simpo_cli.model.allocator import begin_without_cache, keep_freed_memory
if sys.argv[1] == "joined":
    begin_without_cache()
import psutil
import torch
keep_freed_memory()
def layers():
    kept, state = [], torch.ones(1 << 18)  # 1 MB
    for _ in range(40):
        wide = [torch.ones(3 << 17) for _ in range(5)]
        kept += [state, *(torch.ones(8) for _ in range(50))]
        state = 2 * wide[0][: 1 << 18]
before = psutil.Process().memory_info().rss
for _ in range(3):
    layers()
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="needs glibc")
def test_what_is_free_between_tensors_that_stay_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 MB stay and 8 MB come and go; a device of a card would have it as it is."""
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    in_pieces, joined = (
        int(subprocess.run([sys.executable, "-c", _LAYERS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("in pieces", "joined")
    )
    assert in_pieces > 2 * joined
    assert joined < 100 << 20


@pytest.fixture
def begun_again(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """What this process would have become, on a machine without a card whose C library is glibc."""
    begun: list[tuple[str, list[str]]] = []
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(allocator.os.path, "exists", lambda _: False)
    monkeypatch.setattr(allocator.os, "execv", lambda program, command: begun.append((program, command)))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "-m", "simpo_cli", "train", "demo"])
    return begun


@pytest.mark.parametrize("before", ["", "glibc.malloc.perturb=1"])
def test_a_command_begins_again_as_it_was_called(
    before: str, begun_again: list[tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", before)
    begin_without_cache()
    begin_without_cache()  # as it does in the process that this one has become
    assert begun_again == [(sys.executable, [sys.executable, "-X", "dev", "-m", "simpo_cli", "train", "demo"])]
    *others, ours = os.environ["GLIBC_TUNABLES"].split(":")
    assert (others, ours) == ([before] if before else [], "glibc.malloc.tcache_count=0")


def test_a_command_does_not_begin_again_where_that_is_of_no_use(
    begun_again: list[tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=3")
        begin_without_cache()
    with monkeypatch.context() as patch:
        patch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
        begin_without_cache()
    with monkeypatch.context() as patch:
        patch.setattr(allocator.os.path, "exists", lambda path: path == "/dev/kfd")
        begin_without_cache()
    assert not begun_again
    assert "GLIBC_TUNABLES" not in os.environ


def test_a_command_that_may_not_begin_again_goes_on(
    begun_again: list[tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(program: str, _: list[str]) -> None:
        raise PermissionError(program)

    monkeypatch.setattr(allocator.os, "execv", forbidden)
    begin_without_cache()
    assert not begun_again


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
