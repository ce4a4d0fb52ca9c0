"""Pairs measured in other processes, with nobody left behind, and pairs grouped by a field."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest

from simpo_cli.audit import reading
from simpo_cli.audit.document import stats_document
from simpo_cli.audit.examine import examine
from simpo_cli.audit.measures import measure
from simpo_cli.audit.reading import MOST_GROUPS, NONE, OTHERS, Groups, MeasuredBatch, ReadPair, measured_batches
from simpo_cli.data import batches
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import Message, PreferencePair, RawRecord
from simpo_cli.errors import ExitCode, UserError
from tests.benchmarks.audit import made_pairs
from tests.data.pair_files import write_pairs

_OF_OTHERS: set[psutil.Process] = set()
"""Children that other tests in this process have left for later ones of theirs."""


@pytest.fixture(autouse=True)
def others() -> None:
    _OF_OTHERS.clear()
    _OF_OTHERS.update(psutil.Process().children(recursive=True))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything behind the first batch is measured by two other processes."""
    monkeypatch.setattr(reading, "MEASURED_HERE", 1)
    monkeypatch.setattr(reading, "_num_cores", lambda: 2)
    monkeypatch.setattr(batches, "PAIRS_PER_BATCH", 40)


def children() -> list[psutil.Process]:
    """Processes that measure; what tracks the semaphores of pools stays for the next one."""
    found = (child for child in psutil.Process().children(recursive=True) if child not in _OF_OTHERS)
    return [child for child in found if "resource_tracker" not in " ".join(child.cmdline())]


def measured(
    pairs: list[PreferencePair], size: int, own: tuple[str, ...] | None = None
) -> "closing[Iterator[MeasuredBatch]]":
    reads = [ReadPair(pair, number, 0, 0, ()) for number, pair in enumerate(pairs)]
    cut = (reads[start : start + size] for start in range(0, len(reads), size))
    return closing(measured_batches(cut, own=own))  # type: ignore[type-var]


def made(count: int) -> list[PreferencePair]:
    return [PreferencePair(*texts, "") for texts in made_pairs(count, seed=5)]


def made_records(count: int) -> list[dict[str, str]]:
    return [dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)) for texts in made_pairs(count, seed=6)]


# Measuring


@pytest.mark.parametrize("own", [None, ("<|im_start|>", "it's")])
@pytest.mark.usefixtures("elsewhere")
def test_the_same_measures_in_the_same_order(own: tuple[str, ...] | None) -> None:
    odd = [
        PreferencePair((Message("system", "s"), Message("user", "wie geht’s")), "gut\0", "â€™ </s>", "a"),
        PreferencePair("\ud800", "half a character", "Assistant: x", "b"),
    ]
    pairs = [*odd, *made(150), *odd]
    expected = measure(pairs, own=own)
    with measured(pairs, 10, own) as found:
        seen = list(found)
    assert children() == []
    assert [read.number for reads, _ in seen for read in reads] == list(range(len(pairs)))
    assert [codes for _, texts in seen for codes in texts.codes] == expected.codes
    for part in ("words", "characters", "letters", "hashes", "surface", "signatures"):
        together = np.concatenate([getattr(texts, part) for _, texts in seen])
        assert together.dtype == getattr(expected, part).dtype
        assert (together == getattr(expected, part)).all()


def test_small_data_are_measured_here() -> None:
    with measured(made(30), 5) as found:
        for _ in found:
            assert children() == []


@pytest.mark.usefixtures("elsewhere")
def test_the_document_is_the_same_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = made_records(400)
    records[7]["chosen"] = records[390]["rejected"] = "mojibake â€™"
    path = write_pairs(tmp_path, "prefs.jsonl", records)

    def document() -> str:
        reader = PairReader(path, role="train", on_no_signal="keep")
        return json.dumps(stats_document(examine(reader), version="-"))

    several = document()
    assert "DUP002" in several
    monkeypatch.setattr(reading, "_num_cores", lambda: 1)
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
    def until_killed() -> None:
        with measured(made(300), 10) as found:
            for number, _ in enumerate(found):
                if number == 2:
                    assert len(children()) == 2
                    os.kill(children()[0].pid, signal.SIGKILL)

    with pytest.raises(UserError, match="was killed") as caught:
        until_killed()
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert children() == []


@pytest.mark.usefixtures("elsewhere")
def test_ctrl_c_reaches_this_process_alone_and_leaves_none_behind() -> None:
    with measured(made(300), 10) as found:
        for number, _ in enumerate(found):
            if number == 3:
                for child in children():
                    os.kill(child.pid, signal.SIGINT)  # as a terminal does
            if number == 9:
                assert len(children()) == 2
                break
    assert children() == []


def test_they_end_when_whoever_gives_work_is_killed() -> None:
    code = (
        "import os, signal, sys\n"
        "from simpo_cli.audit import reading\n"
        "from tests.audit.test_reading import children, made, measured\n"
        "reading.MEASURED_HERE, reading._num_cores = 1, lambda: 2\n"
        "with measured(made(300), 10) as found:\n"
        "    for number, _ in enumerate(found):\n"
        "        if number == 3:\n"
        "            print(*(child.pid for child in children()), flush=True)\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root, check=False)
    left = [psutil.Process(int(pid)) for pid in done.stdout.split() if psutil.pid_exists(int(pid))]
    assert psutil.wait_procs(left, timeout=60)[1] == []


@pytest.mark.parametrize("name", ["multiprocessing.py", "struct.py", "numpy.py"])
def test_they_take_no_module_from_the_current_folder_and_do_not_run_the_program(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("raise SystemExit('a module of the current folder')\n")
    write_pairs(tmp_path, "prefs.jsonl", made_records(90))
    script = tmp_path / "elsewhere" / "simpo"
    script.parent.mkdir()
    script.write_text(
        "from simpo_cli.audit import reading\n"
        "from simpo_cli.cli.main import run\n"
        "from simpo_cli.data import batches\n"
        "reading.MEASURED_HERE, reading._num_cores, batches.PAIRS_PER_BATCH = 1, lambda: 2, 20\n"
        "raise SystemExit(run(['stats', 'prefs.jsonl']))\n"
    )
    path = os.pathsep.join(place for place in sys.path if place)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "a module" in done.stderr) == (0, False), done.stderr


# Groups


def record(value: object) -> RawRecord:
    return RawRecord("f:1", {"made": {"by": value}, "Source": 1})


def test_values_are_numbered_as_they_turn_up() -> None:
    groups = Groups("made.by")
    numbers = [groups.number_of(record(value)) for value in ("a", 1, "a", None, True, "1")]
    assert numbers == [0, 1, 0, 2, 3, 1]
    assert groups.names == ["a", "1", NONE, "True"]


def test_many_values_take_no_more_memory_than_some() -> None:
    groups = Groups("made.by")
    numbers = [groups.number_of(record(f"{n} " * 1000)) for n in range(3 * MOST_GROUPS)]
    assert numbers[:MOST_GROUPS] == list(range(MOST_GROUPS))
    assert set(numbers[MOST_GROUPS:]) == {MOST_GROUPS}
    assert groups.names[MOST_GROUPS:] == [OTHERS]
    assert max(numbers) < 256  # one byte is kept of a pair
    assert max(map(len, groups.names)) <= 80


def test_a_field_that_no_record_has_is_refused_after_some() -> None:
    groups = Groups("source")
    for _ in range(99):
        groups.number_of(record("a"))
    with pytest.raises(UserError, match="no record has that field") as caught:
        groups.number_of(record("a"))
    assert "Source" in caught.value.fix
