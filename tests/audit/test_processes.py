"""Texts measured in other processes: the same numbers in the same order, and nobody left behind."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from simpo_cli.audit import reading
from simpo_cli.audit import reading as processes
from simpo_cli.audit.document import stats_document
from simpo_cli.audit.examine import examine
from simpo_cli.audit.measures import measure
from simpo_cli.audit.reading import MeasuringProcesses, ReadPair
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import Message, PreferencePair
from simpo_cli.errors import ExitCode, UserError
from tests.benchmarks.audit import made_pairs

_OF_OTHERS: set[psutil.Process] = set()
"""Children that other tests in this process have left for later ones of theirs."""


@pytest.fixture(autouse=True)
def others() -> None:
    _OF_OTHERS.clear()
    _OF_OTHERS.update(psutil.Process().children(recursive=True))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything behind the first batch is measured by two other processes."""
    monkeypatch.setattr(processes, "MEASURED_HERE", 1)
    monkeypatch.setattr(processes, "_num_cores", lambda: 2)
    monkeypatch.setattr(reading, "_BATCH", 40)


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child not in _OF_OTHERS]


def batches_of(pairs: list[PreferencePair], size: int) -> Iterator[list[ReadPair]]:
    reads = [ReadPair(pair, number, 0, 0, ()) for number, pair in enumerate(pairs)]
    return (reads[start : start + size] for start in range(0, len(reads), size))


@pytest.mark.parametrize("own", [None, ("<|im_start|>", "it's")])
@pytest.mark.usefixtures("elsewhere")
def test_the_same_measures_in_the_same_order(own: tuple[str, ...] | None) -> None:
    odd = [
        PreferencePair((Message("system", "s"), Message("user", "wie geht’s")), "gut\0", "â€™ </s>", "a"),
        PreferencePair("\ud800", "half a character", "Assistant: x", "b"),
    ]
    pairs = [*odd, *(PreferencePair(*texts, "") for texts in made_pairs(150, seed=5)), *odd]
    expected = measure(pairs, own=own)
    with MeasuringProcesses(own=own) as measuring:
        seen = list(measuring.measured(batches_of(pairs, 10)))
        assert len(children()) == 2
    assert children() == []
    assert [read.number for reads, _ in seen for read in reads] == list(range(len(pairs)))
    assert [codes for _, texts in seen for codes in texts.codes] == expected.codes
    for part in ("words", "characters", "letters", "hashes", "surface", "signatures"):
        found = np.concatenate([getattr(texts, part) for _, texts in seen])
        assert found.dtype == getattr(expected, part).dtype
        assert (found == getattr(expected, part)).all()


def test_small_data_are_measured_here() -> None:
    pairs = [PreferencePair(*texts, "") for texts in made_pairs(30, seed=5)]
    with MeasuringProcesses(own=None) as measuring:
        for _ in measuring.measured(batches_of(pairs, 5)):
            assert children() == []


@pytest.mark.usefixtures("elsewhere")
def test_the_document_is_the_same_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prefs.jsonl"
    records = [dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)) for texts in made_pairs(400, seed=6)]
    records[7]["chosen"] = records[390]["rejected"] = "mojibake â€™"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))

    def document() -> str:
        reader = PairReader(str(path), role="train", on_no_signal="keep")
        return json.dumps(stats_document(examine(reader), version="-"))

    several = document()
    assert "DUP002" in several
    monkeypatch.setattr(processes, "_num_cores", lambda: 1)
    assert document() == several


@pytest.mark.usefixtures("elsewhere")
def test_none_is_left_behind_when_a_record_stops_the_audit(tmp_path: Path) -> None:
    path = tmp_path / "prefs.jsonl"
    lines = [json.dumps({"prompt": f"{n}", "chosen": "a", "rejected": "b"}) for n in range(300)]
    path.write_text("\n".join([*lines, "{"]))
    with pytest.raises(UserError, match="cut off") as caught:
        examine(PairReader(str(path), role="train", on_no_signal="keep"))
    assert caught.value.where == f"{path}:301"
    assert children() == []


@pytest.mark.usefixtures("elsewhere")
def test_a_process_that_is_killed_is_an_error_of_resources_and_no_hang() -> None:
    pairs = [PreferencePair(*texts, "") for texts in made_pairs(300, seed=5)]

    def until_killed() -> None:
        with MeasuringProcesses(own=None) as measuring:
            for number, _ in enumerate(measuring.measured(batches_of(pairs, 10))):
                if number == 2:
                    os.kill(children()[0].pid, signal.SIGKILL)

    with pytest.raises(UserError, match="was killed") as caught:
        until_killed()
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert children() == []


@pytest.mark.usefixtures("elsewhere")
def test_ctrl_c_leaves_none_behind() -> None:
    pairs = [PreferencePair(*texts, "") for texts in made_pairs(300, seed=5)]

    def interrupted() -> None:
        with MeasuringProcesses(own=None) as measuring:
            for number, _ in enumerate(measuring.measured(batches_of(pairs, 10))):
                if number == 3:
                    # not in the foreground group, so that the terminal's signal does not reach them
                    assert all(os.getpgid(child.pid) == child.pid for child in children())
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert children() == []


@pytest.mark.usefixtures("elsewhere")
def test_they_end_when_whoever_asked_is_gone() -> None:
    process = processes._Process(own=None)
    assert process._process.stdin is not None
    process._process.stdin.close()
    assert process._process.wait(timeout=60) == 0
    process.close()
