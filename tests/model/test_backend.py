"""The table of devices: what a run asks it, on devices that are not here and whose torch is played."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from simpo_cli.distributed import ranks
from simpo_cli.errors import UserError
from simpo_cli.model import backend
from simpo_cli.model.attention import varlen_cuda
from simpo_cli.model.backend import (
    BACKENDS,
    available_bytes,
    backend_of,
    free_bytes,
    multiplies_in_bf16,
    release_memory,
)
from simpo_cli.model.compile_check import is_worth_compiling
from simpo_cli.model.device import choose_precision, device_type, untried
from simpo_cli.model.memory import choose_budget
from simpo_cli.model.out_of_memory import ran_out
from simpo_cli.model.shares import Failure, Numbers
from tests.model.test_memory import _need

CPU, CUDA, XPU, MPS = (torch.device(kind) for kind in ("cpu", "cuda", "xpu", "mps"))


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let torch see one type of device, or several."""

    def seen(*kinds: str) -> None:
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in kinds)
        for kind in ("cuda", "xpu", "mps"):
            monkeypatch.setattr(getattr(torch, kind), "is_available", lambda kind=kind: kind in kinds)

    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    return seen


def test_the_device_is_the_one_that_accelerate_takes_unless_the_cpu_is_asked_for(
    only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("cuda", "xpu", "mps"):
        only(kind)
        assert device_type() == kind
    only()
    assert device_type() == "cpu"
    only("cuda", "mps")
    for value, kind in (("true", "cpu"), ("1", "cpu"), ("false", "mps")):
        monkeypatch.setenv("ACCELERATE_USE_CPU", value)
        assert device_type() == kind


def test_rocm_calls_its_devices_cuda_and_is_not_asked_to_keep_keys_together(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [SimpleNamespace(name="num_splits")]
    later = SimpleNamespace(default=SimpleNamespace(_schema=SimpleNamespace(arguments=known)))
    monkeypatch.setattr(varlen_cuda, "_forward", later)
    assert (backend_of(CUDA).name, varlen_cuda._splits()) == ("cuda", {"num_splits": 1})
    monkeypatch.setattr(torch.version, "hip", "7.1")
    assert (backend_of(CUDA).name, varlen_cuda._splits()) == ("rocm", {})
    assert backend_of(CPU).name == "cpu"


def test_each_run_on_a_device_that_we_did_not_have_says_so() -> None:
    assert untried(CPU) is None
    assert untried(MPS) == (
        "mps: not run by us; attention is plain torch, one segment at a time, and the self-check decides "
        "(docs/compute.md)"
    )
    assert [row.name for row in BACKENDS.values() if row.was_run] == ["cpu"]


def test_the_documentation_has_a_row_for_each() -> None:
    """Attention, memory of its own, page-locked copies, and whether it was run."""
    text = (Path(__file__).parents[2] / "docs" / "compute.md").read_text(encoding="utf-8")
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].strip("`") in BACKENDS:
            rows[cells[0].strip("`")] = cells[1], *(cells[at].startswith("yes") for at in (3, 4, 7))
    assert rows == {row.name: (row.attention, row.own_memory, row.pinned, row.was_run) for row in BACKENDS.values()}


def test_optimizers_are_fused_where_torch_says_so() -> None:
    supported = torch.utils._foreach_utils._get_fused_kernels_supported_devices()
    for row in BACKENDS.values():
        assert row.fused_adamw == ({"rocm": "cuda"}.get(row.name, row.name) in supported)


def test_apples_devices_are_bf16_only_where_the_system_has_it_and_only_if_asked(
    only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    only("mps")
    for newer in (True, False):
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_, newer=newer: newer)
        assert choose_precision("auto", "x") == "fp32"
        if newer:
            assert choose_precision("bf16", "x") == "bf16"
        else:
            with pytest.raises(UserError, match="bf16, which this card does not compute in"):
                choose_precision("bf16", "x")


def test_intels_devices_say_themselves_whether_they_multiply_in_bf16(
    only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    only("xpu")
    monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not multiplies_in_bf16("xpu")
    assert (choose_precision("auto", "x"), choose_precision("bf16", "x")) == ("fp32", "bf16")


def test_free_memory_of_each_type_of_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.psutil, "virtual_memory", lambda: SimpleNamespace(available=50))
    monkeypatch.setattr(torch.xpu, "mem_get_info", lambda _: (30, 100))
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 10)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 40)
    assert (available_bytes(CPU), available_bytes(XPU), available_bytes(MPS)) == (50, 30, 30)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 400)  # which the host uses as well
    assert free_bytes(MPS) == 50


def test_caches_of_every_device_are_given_back(only: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    emptied = []
    only("xpu", "mps")
    for kind in ("cuda", "xpu", "mps"):
        monkeypatch.setattr(getattr(torch, kind), "empty_cache", lambda kind=kind: emptied.append(kind))
    release_memory()
    assert emptied == ["xpu", "mps"]
    assert ran_out(RuntimeError("MPS backend out of memory (MPS allocated: 17.31 GB, other allocations: 1.00 GB)"))


def test_no_tensor_is_wider_than_the_device_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a device without float64 the numbers of a step are float32, and float64 again on the host."""
    narrow = BACKENDS["mps"]
    monkeypatch.setattr("simpo_cli.model.shares.backend_of", lambda _: narrow)
    made: list[torch.dtype] = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: made.append(k["dtype"]) or empty(*a, **k))
    numbers = Numbers(2, 3, CPU)
    rows = torch.randn(2, 3)
    numbers.add([2, 0, 1], rows)
    in_order, _ = numbers.of_all()
    assert made == [torch.float32, torch.float64]
    np.testing.assert_array_equal(in_order[:, [2, 0, 1]].numpy(), rows.double().numpy())
    assert Failure(None, is_sharded=False).flags(CPU).dtype == torch.float32


def test_decisions_know_every_type_of_device() -> None:
    plenty = _need(per_token=1, available=1 << 40)
    budgets = {kind.type: choose_budget(plenty, kind, longest=100) for kind in (CPU, CUDA, XPU, MPS)}
    assert budgets == {"cpu": 1024, "cuda": 16384, "xpu": 16384, "mps": 16384}
    assert not any(is_worth_compiling(kind, 10**12, 10**12) for kind in (CPU, XPU, MPS))


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_sharding_is_refused_where_torch_cannot_be_relied_on_for_it(kind: str, only: Any) -> None:
    only(kind)
    with pytest.raises(UserError, match=f"are for CUDA cards and for CPUs; this runs on {kind}"):
        ranks.join(device_type(), 10.0, alone=True)
    ranks.join(device_type(), 10.0)
    assert ranks.world_size() == 1
