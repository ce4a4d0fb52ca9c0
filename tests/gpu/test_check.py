"""What becomes of a check when a part of it breaks, lacks something, hangs, or takes its process with it."""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from simpo_cli.model.policy import Policy
from tests.gpu import bundle, check, speed
from tests.gpu.check import (
    PARTS,
    Document,
    MissingError,
    Outcome,
    Part,
    Place,
    WrongError,
    require,
    run_parts,
    supervise,
)

Work = Callable[[Place], tuple[str, dict[str, Any]]]
ILLEGAL = RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(torch.device("cpu"), True, tmp_path, peak_flops=1e9)


def _works(_: Place) -> tuple[str, dict[str, Any]]:
    return "fine", {"a": 1}


def _raises(error: Exception) -> Work:
    def work(place: Place) -> tuple[str, dict[str, Any]]:
        place.keep({"half": 2})
        raise error

    return work


def _part(monkeypatch: pytest.MonkeyPatch, name: str, work: Work, seconds: float = 1.0) -> Part:
    """A part whose work is a function of this file."""
    monkeypatch.setattr(check, name, work, raising=False)
    return Part(name, ("tests.gpu.check", name), seconds)


def test_a_part_that_breaks_is_not_the_end_and_is_written_down(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def works(place: Place) -> tuple[str, dict[str, Any]]:
        place.keep({"half": 1})
        seen.append(json.loads(document.file.read_text(encoding="utf-8")))
        place.bar("share", 0.4, least=0.45)
        return _works(place)

    document = Document.new(place.folder / "gpu_check.json", tiny=True)
    works_of = {
        "breaks": _raises(ZeroDivisionError("by design")),
        "lacks": _raises(MissingError("liger_kernel is not installed")),
        "imports": _raises(ModuleNotFoundError("none", name="omegaconf.errors")),
        "is_ours": _raises(ModuleNotFoundError("none", name="simpo_cli.gone")),
        "is_wrong": lambda _: (require(False, "0.2 from plain attention", {"rows": [1]}), {}),
        "works": works,
    }
    assert run_parts([_part(monkeypatch, *one) for one in works_of.items()], place, document)
    outcomes = document.outcomes
    assert [outcome.status for outcome in outcomes] == ["FAIL", "SKIP", "SKIP", "FAIL", "FAIL", "PASS"]
    assert outcomes[0].summary == "ZeroDivisionError: by design"
    assert outcomes[0].facts["half"] == 2
    assert any("by design" in line for line in outcomes[0].facts["traceback"])
    assert outcomes[2].summary == "omegaconf.errors is not installed"
    assert outcomes[4].facts["rows"] == [1]
    assert len(seen[0]["parts"]) == 5  # what was known before the last part was in the file
    assert seen[0]["running"] == {"part": "works", "facts": {"half": 1}}
    written = Document.read(document.file)
    assert written.outcomes == outcomes
    assert written.content["bars"] == [{"name": "share", "value": 0.4, "least": 0.45, "most": None, "met": False}]
    assert written.content["running"] is None


def test_what_would_pass_the_time_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_clear", lambda _: None)
    document = Document.new(tmp_path / "out.json", tiny=False)
    parts = [_part(monkeypatch, "long", _raises(ILLEGAL), 1000.0), _part(monkeypatch, "short", _works)]
    assert run_parts(parts, Place(torch.device("cuda"), False, tmp_path), document)
    assert [outcome.status for outcome in document.outcomes] == ["SKIP", "PASS"]
    assert "it takes about 1000" in document.outcomes[0].summary


def test_a_device_that_takes_no_more_work_ends_the_process_and_not_the_check(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_clear", Mock(side_effect=ILLEGAL))
    document = Document.new(place.folder / "out.json", tiny=True)
    parts = [_part(monkeypatch, "first", _raises(ILLEGAL)), _part(monkeypatch, "second", _works)]
    assert not run_parts(parts, place, document)
    assert [outcome.part for outcome in document.outcomes] == ["first"]


_WORKER = """
import os, sys, time
from pathlib import Path
from tests.gpu.check import Document, Outcome
document = Document.read(Path(sys.argv[1]))
for name in sys.argv[2:]:
    document.begin(name, {"so_far": 1})
    if name == "kernels":
        os.abort()
    if name == "agreement":
        time.sleep(60)
    document.end(Outcome(name, "PASS", 0.1, "fine"))
"""


def test_a_part_that_ends_its_process_or_hangs_is_a_failure_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def command(file: Path, parts: list[str]) -> list[str]:
        started.append(parts)
        return [sys.executable, "-c", _WORKER, str(file), *parts]

    monkeypatch.setattr(check, "_command", command)
    monkeypatch.setattr(check, "_patience", lambda part, **_: 0.5 if part == "agreement" else 60.0)
    monkeypatch.chdir(Path(__file__).parents[2])
    document = supervise(PARTS[:4], tmp_path / "out.json", tiny=True)
    assert document is not None
    names = ["ceilings", "kernels", "agreement", "self-check"]
    assert started == [names, names[2:], names[3:]]
    assert [(outcome.part, outcome.status) for outcome in document.outcomes] == [
        ("ceilings", "PASS"),
        ("kernels", "FAIL"),
        ("agreement", "FAIL"),
        ("self-check", "PASS"),
    ]
    assert document.outcomes[1].summary == "the process ended by SIGABRT"
    assert document.outcomes[1].facts == {"so_far": 1}
    assert document.outcomes[2].summary == "hung: it was ended after 0.5 s"


def test_a_process_that_does_not_even_begin_is_not_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_command", lambda *_: [sys.executable, "-c", "raise SystemExit(9)"])
    document = supervise(PARTS[:2], tmp_path / "out.json", tiny=True)
    assert document is not None
    assert [outcome.summary for outcome in document.outcomes] == ["the process ended with code 9"]
    assert document.outcomes[0].status == "FAIL"


@pytest.mark.parametrize(("status", "code"), [("FAIL", 1), ("PASS", 0), ("SKIP", 0)])
def test_a_failure_is_the_exit_code_and_a_missed_bar_is_none(
    status: check.Status, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def supervised(_: Any, file: Path, *, tiny: bool) -> Document:
        document = Document.new(file, tiny=tiny)
        document.end(Outcome("kernels", status, 1.0, "so it is"))
        document.content["bars"].append({"name": "share", "value": 0.4, "least": 0.45, "most": None, "met": False})
        return document

    monkeypatch.setattr(check, "supervise", supervised)
    monkeypatch.setattr(check, "expand_segments", lambda: None)  # it is for the process that follows
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert check.main(["--tiny", "--output", str(tmp_path / "out.json")]) == code
    output = capsys.readouterr().out
    assert f"{status}  kernels" in output
    assert "MISSED  share: 0.4 (at least 0.45)" in output


def test_without_a_card_it_says_how_to_try_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    document = Document.new(tmp_path / "out.json", tiny=False)
    assert check.main(["--work", "--output", str(document.file)]) == 4
    assert "--tiny" in capsys.readouterr().err


def test_the_work_of_every_part_is_there() -> None:
    for part in PARTS:
        module, function = part.work
        assert callable(getattr(__import__(module, fromlist=["_"]), function))
    assert sum(part.seconds for part in PARTS) <= check._SECONDS


def test_the_bundle_holds_what_the_check_needs_beside_torch_and_transformers() -> None:
    bundled = {canonicalize_name(name) for name in bundle._PACKAGES}
    assert {"omegaconf", "rensa", "xxhash", "pytest-socket", "liger-kernel"} <= bundled
    assert not bundled & {"torch", "pyarrow", "transformers", "datasets", "huggingface-hub", "tokenizers"}
    there = {"torch", "transformers", "typing-extensions"}  # and what the latter two bring, but for typer's own
    there |= {"huggingface-hub", "numpy", "packaging", "pyyaml", "safetensors", "tqdm", "markupsafe", "six"}
    for name in sorted(bundled):
        with suppress(PackageNotFoundError):  # not all of them are here
            needs = [Requirement(text) for text in requires(name) or []]
            wanted = {canonicalize_name(need.name) for need in needs if not need.marker or need.marker.evaluate()}
            assert wanted <= bundled | there, name


def test_a_way_that_breaks_stops_no_other_from_being_timed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler breaks: everything else is measured and kept, and the part fails with the reason."""
    monkeypatch.setattr(Policy, "compile_layers", Mock(side_effect=RuntimeError("no compiler here\nsecond line")))
    with pytest.raises(WrongError, match="compiled did not run.*RuntimeError: no compiler here") as caught:
        speed.speed_1_5b_full(place)
    facts = caught.value.facts
    assert set(facts["ways"]) == {"ours", "padded", "whole_logits"}
    assert all(way["seconds"]["n"] == 4 for way in facts["ways"].values())
    assert len(facts["kernels"]["ours"]) == 20
    assert "liger" in facts["missing"]
    assert place.known["ways"].keys() == facts["ways"].keys()


def test_ways_that_do_not_compute_the_same_are_a_failure(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    means = speed._means_from_whole_logits

    def off(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        chosen, rejected = means(*arguments)
        return chosen + 0.01, rejected

    monkeypatch.setattr(Policy, "compile_layers", lambda *_: None)
    monkeypatch.setattr(speed, "_means_from_whole_logits", off)
    with pytest.raises(WrongError, match="losses differ from ours: {'whole_logits'"):
        speed.speed_1_5b_full(place)


def test_a_profile_that_breaks_leaves_the_times(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Policy, "compile_layers", lambda *_: None)
    monkeypatch.setattr(speed, "_profiled", Mock(side_effect=RuntimeError("no profiler here")))
    with pytest.raises(WrongError, match="the profile of ours, the profile of compiled did not run") as caught:
        speed.speed_1_5b_full(place)
    assert all(way["seconds"]["n"] >= 2 for way in caught.value.facts["ways"].values())
