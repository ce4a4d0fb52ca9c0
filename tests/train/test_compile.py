"""model.compile: checked once, told, part of the run's identity, and kept when the run is resumed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tests.train.conftest import Memory
from tests.train.guide import final_state
from tests.train.test_resume import EVERY, Place

COMPILE = [*EVERY, "model.compile=true"]


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path, prefs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Runs in which the compiler writes no machine code, which takes its time."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **options: compile_module(self, backend="aot_eager", **options)
    )
    torch.compiler.reset()
    counters.clear()
    yield Place(tmp_path, tiny_folder, prefs)
    torch.compiler.reset()


def test_a_compiled_run_is_resumed_to_the_bit(place: Place) -> None:
    memory = Memory()
    place.train("whole", *COMPILE, observer=memory)
    assert "layers compiled" in memory.notes
    assert counters["stats"]["unique_graphs"] > 0
    assert json.loads((place.folder / "whole" / "run.json").read_text(encoding="utf-8"))["compiled"] is True
    place.cut("cut", *COMPILE, step=2)
    torch.compiler.reset()
    resumed = Memory()
    place.train("cut", *COMPILE, resume=True, observer=resumed)
    assert not any("layers" in note or "bit-exact" in note for note in resumed.notes)  # kept, not checked again
    place.require_same("cut", "whole")


def test_a_change_of_mind_is_told(place: Place) -> None:
    place.train("eager", *EVERY)
    place.cut("changed", *COMPILE, step=2)
    memory = Memory()
    place.train("changed", *EVERY, "model.compile=false", resume=True, observer=memory)
    assert [note for note in memory.notes if "bit-exact" in note] == [
        "not bit-exact from step 1: compiled not set, was True"
    ]
    place.cut("again", *EVERY, step=2)
    place.train("again", *EVERY, resume=True)  # auto does nothing on a CPU, and is no change
    assert final_state(place.folder / "again") == final_state(place.folder / "eager")


def test_what_cannot_be_compiled_trains_as_it_is(place: Place) -> None:
    memory = Memory()
    place.train("padded", *COMPILE, "model.attention=padded", "train.max_steps=1", observer=memory)
    assert "layers not compiled: rows are padded" in memory.notes
