"""The lines that only a card runs, run: a CPU is taken for one, and what torch would ask the card is answered here."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.gpu import check, correctness, runs, speed
from tests.gpu.check import Document, Place, work

_TOTAL = 80_000_000_000
_PEAK = 3_000_000


class _Event:
    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: "_Event") -> float:
        return 1e3 * (other.at - self.at)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What was asked of the card, in turn."""
    seen: list[tuple[str, Any]] = []
    answers = {
        "synchronize": None,
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "set_per_process_memory_fraction": None,
        "memory_allocated": 1_000_000,
        "max_memory_allocated": _PEAK,
        "get_device_capability": (7, 5),
        "get_device_properties": SimpleNamespace(
            name="A card", total_memory=_TOTAL, major=9, minor=0, multi_processor_count=132
        ),
    }
    for name, answer in answers.items():

        def asks(*arguments: Any, name: str = name, answer: Any = answer) -> Any:
            seen.append((name, arguments))
            return answer

        monkeypatch.setattr(torch.cuda, name, asks)
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(Place, "on_cuda", True)
    return seen


def _place(folder: Path) -> Place:
    return Place(torch.device("cpu"), True, folder)


def test_ceilings_by_the_clock_of_the_card(tmp_path: Path, asked: list[tuple[str, Any]]) -> None:
    place = _place(tmp_path)
    _, facts = speed.ceilings(place)
    assert facts["type"] == "bfloat16"
    assert facts["product_tflops"]["n"] == 20
    assert place.peak_flops == pytest.approx(facts["product_tflops"]["median"] * 1e12)
    assert ("synchronize", ()) in asked


def test_a_step_is_held_against_its_bars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[str, Any]]
) -> None:
    monkeypatch.setattr(speed, "_profiled", lambda step, _: [step()])  # there is no kernel of a card to see
    place = _place(tmp_path)
    place.peak_flops = 1e12
    _, facts = speed.speed_8b_lora(place)
    assert set(facts["ways"]) == {"ours", "padded", "whole_logits", "compiled"}
    assert facts["ways"]["ours"]["peak_gb"] == _PEAK / 1e9
    share, ratio = place.bars
    assert share["name"] == "8B LoRA: share of the measured product speed"
    assert 0 < share["value"] < share["least"] == 0.45
    assert not share["met"]
    seconds = {way: row["seconds"]["median"] for way, row in facts["ways"].items()}
    assert ratio["value"] == pytest.approx(seconds["whole_logits"] / min(seconds["ours"], seconds["compiled"]))
    assert [name for name, _ in asked].count("max_memory_allocated") == 2 * 3 + 2 * 4


def test_predicted_memory_beside_the_peak_of_the_card(tmp_path: Path, asked: list[tuple[str, Any]]) -> None:
    place = _place(tmp_path)
    _, facts = correctness.memory(place)
    assert len(facts["rows"]) == 6
    assert {row["measured_gb"] for row in facts["rows"]} == {(_PEAK - 1_000_000) / 1e9}
    assert all(row["predicted_gb"] > 0 for row in facts["rows"])
    [bar] = place.bars
    assert bar["most"] == 0.1
    assert bar["value"] == max(abs(row["predicted_gb"] / row["measured_gb"] - 1) for row in facts["rows"])
    assert asked


def test_what_does_not_fit_a_card_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[str, Any]]
) -> None:
    measure = correctness._predicted_and_measured

    def small(setting: Any, place: Place) -> tuple[int, int]:
        if "8B" in setting.name:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(setting, place)

    monkeypatch.setattr(correctness, "_predicted_and_measured", small)
    told, facts = correctness.memory(_place(tmp_path))
    assert len(facts["rows"]) == 4
    assert told.endswith("8B LoRA, bf16, 8B LoRA, bf16, checkpointing do not fit")
    assert asked


def test_memory_is_taken_from_a_run_and_given_back(tmp_path: Path, asked: list[tuple[str, Any]]) -> None:
    with runs._less_memory(_place(tmp_path)):
        [limit] = [arguments[0] for name, arguments in asked if name == "set_per_process_memory_fraction"]
        assert limit * _TOTAL == pytest.approx(0.7 * _PEAK)
    assert asked[-1] == ("set_per_process_memory_fraction", (1.0,))


def test_the_card_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[str, Any]]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(check, "run_parts", lambda _, place, __: asked.append(("place", place)))
    document = Document.new(tmp_path / "out.json", tiny=False)
    assert work([], document) == 0
    assert document.content["machine"]["device"] == "A card"
    assert document.content["machine"]["capability"] == "9.0"
    place = asked[-1][1]
    assert (place.device.type, place.tiny) == ("cuda", False)


@pytest.mark.parametrize(("peak", "offloaded", "loss", "wrong"), [
    (1.04e9, 0.7e9, 1.0, None),
    (1.06e9, 0.7e9, 1.0, "1.06 GB, and 1.00 were measured"),
    (1.0e9, 1.0e9, 1.0, "saved nothing"),
    (1.0e9, 0.7e9, 1.1, "changed a loss"),
])  # fmt: skip
def test_what_a_run_measures_is_held_against_the_peak_of_its_steps(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[tuple[str, Any]],
    peak: float,
    offloaded: float,
    loss: float,
    wrong: str | None,
) -> None:
    def run(_: Place, __: Path, more: str) -> dict[str, Any]:
        whole = {"memory": {"measured_bytes": 1e9}, "peak": peak, "losses": [1.0]}
        return whole if more.endswith("false") else {**whole, "peak": offloaded, "losses": [loss]}

    monkeypatch.setattr(runs, "_train", run)
    if wrong is None:
        told, _ = runs.measured_microbatch(_place(tmp_path))
        assert told.startswith("measured 1.00 GB, peak of the steps 1.04; with activations on the host 0.70")
    else:
        with pytest.raises(check.WrongError, match=wrong):
            runs.measured_microbatch(_place(tmp_path))
    assert ("empty_cache", ()) in asked
