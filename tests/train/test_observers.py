"""Trackers get the numbers; one that raises at any call is left out, which is said once, and the run goes on."""

from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking

from tests.train.runs import Runs, final_state, guide_runs


class Fragile(tracking.GeneralTracker):
    """A tracker of which one call fails, as where a server is away."""

    name = "fragile"
    requires_logging_directory = False
    fails_at = ""
    calls: list[str]

    def __init__(self, run_name: str) -> None:
        type(self).calls = []
        self._call("made")
        super().__init__()
        assert run_name == "simpo"

    def start(self) -> None:
        self._call("start")

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        assert values["beta"] == 2.0
        self._call("configuration")

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._call(f"{'evaluation' if 'eval/loss' in values else 'log'} {step}")

    def finish(self) -> None:
        self._call("finish")

    def _call(self, which: str) -> None:
        self.calls.append(which)
        if which == self.fails_at:
            raise ConnectionError("the server is away\nand more lines")


class Sound(Fragile):
    """Another one beside it, which goes on."""

    name = "sound"
    calls: list[str]


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    for name, kind in (("fragile", Fragile), ("sound", Sound)):
        monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, kind)
    monkeypatch.setattr("simpo_cli.train.observers.get_available_trackers", lambda: ["fragile", "sound"])
    return guide_runs(tmp_path)


RUN = ("train.max_steps=2", "eval.every=null", "checkpoint.every=null", "health.num_answers=0")
ALL_CALLS = ["made", "start", "configuration", "evaluation 0", "log 1", "log 2", "evaluation 2", "finish"]


def test_a_tracker_gets_every_number_and_is_closed(guide: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fragile, "fails_at", "")
    memory = guide.train("run", *RUN, "tracking.report_to=[fragile]")
    assert Fragile.calls == ALL_CALLS
    assert memory.said("tracker fragile") == []


@pytest.mark.parametrize("call", ["made", "evaluation 0", "log 2", "finish"])
def test_one_that_raises_is_left_out_and_the_run_goes_on(
    guide: Runs, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(Fragile, "fails_at", call)
    monkeypatch.setattr(Sound, "fails_at", "")
    memory = guide.train("run", *RUN, "tracking.report_to=[fragile, sound]")
    assert Fragile.calls == ALL_CALLS[: ALL_CALLS.index(call) + 1]  # and never again
    assert Sound.calls == ALL_CALLS
    [said] = memory.said("tracker ")
    assert said.startswith("tracker fragile has failed and gets no more numbers (ConnectionError: the server is away);")
    assert [row["step"] for row in guide.log("run", "metrics")] == [1, 2]
    assert guide.receipt("run")["status"] == "done"
    assert final_state(guide.folder / "run")


def test_a_run_that_fails_lets_its_trackers_finish(guide: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sound, "fails_at", "")
    monkeypatch.setattr("simpo_cli.train.session.run_steps", lambda *_: (_ for _ in ()).throw(ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        guide.train("run", *RUN, "tracking.report_to=[sound]")
    assert Sound.calls[-1] == "finish"


def test_tensorboard_gets_the_numbers(tiny: Runs) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny.train("run", "tracking.report_to=[tensorboard]", "train.max_steps=2")
    scalars = EventAccumulator(str(tiny.folder / "run" / "simpo"))
    scalars.Reload()
    assert {"loss", "rewards/margins", "eval/accuracy"} <= set(scalars.Tags()["scalars"])
    assert [event.step for event in scalars.Scalars("loss")] == [1, 2]
