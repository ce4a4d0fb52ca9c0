"""model.compile: checked once, told, part of the run's identity, and kept when the run is resumed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tests.train.runs import EVERY, Runs, final_state, tiny_runs

COMPILE = "model.compile=true"


@pytest.fixture
def tiny(tmp_path: Path, tiny_folder: Path, prefs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    """Runs in which the compiler writes no machine code, which takes its time."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **options: compile_module(self, backend="aot_eager", **options)
    )
    torch.compiler.reset()
    counters.clear()
    yield tiny_runs(tmp_path, tiny_folder, prefs, *EVERY)
    torch.compiler.reset()


def test_a_compiled_run_is_resumed_to_the_bit(tiny: Runs) -> None:
    assert "layers compiled" in tiny.train("whole", COMPILE).notes
    assert counters["stats"]["unique_graphs"] > 0
    assert tiny.receipt("whole")["compiled"] is True
    tiny.cut("cut", COMPILE, step=2)
    torch.compiler.reset()
    resumed = tiny.train("cut", COMPILE, resume=True)
    assert not resumed.said("layers") + resumed.said("bit-exact")  # kept, not checked again
    tiny.require_same("cut", "whole")


def test_a_change_of_mind_is_told(tiny: Runs) -> None:
    tiny.train("eager")
    tiny.cut("changed", COMPILE, step=2)
    memory = tiny.train("changed", "model.compile=false", resume=True)
    assert memory.said("bit-exact") == ["not bit-exact from step 1: compiled not set, was True"]
    tiny.cut("again", step=2)
    tiny.train("again", resume=True)  # auto does nothing on a CPU, and is no change
    assert final_state(tiny.folder / "again") == final_state(tiny.folder / "eager")


def test_what_cannot_be_compiled_trains_as_it_is(tiny: Runs) -> None:
    memory = tiny.train("padded", COMPILE, "model.attention=padded", "train.max_steps=1")
    assert "layers not compiled: rows are padded" in memory.notes
