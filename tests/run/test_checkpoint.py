"""Checkpoints are whole or absent: whatever call of a save fails, and whatever happens to the files afterwards."""

import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.run import manifest
from simpo_cli.run.checkpoint import CheckpointWriter, commit, reap, rotate
from simpo_cli.run.manifest import (
    MANIFEST,
    Checkpoint,
    DamagedCheckpointError,
    FileFacts,
    Manifest,
    find_checkpoints,
    open_checkpoint,
)


@pytest.fixture(autouse=True)
def _small_pieces_are_hashed_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_FEWEST", 2**18)


FILES = ("weights", "moments", "progress.json")


def _content(step: int, name: str) -> bytes:
    """The weights are many enough for the thread that hashes."""
    return f"{name} of step {step}\n".encode() * (40_000 if name == "weights" else 400)


def _save(parent: Path, step: int) -> Checkpoint:
    def write(files: CheckpointWriter) -> None:
        for name in FILES:
            with files.open(name) as file:
                half = len(_content(step, name)) // 2
                file.write(_content(step, name)[:half])
                file.write(memoryview(_content(step, name))[half:])

    return commit(parent, step, write, {"recipe_sha256": "abc"})


def _read(found: Checkpoint) -> dict[str, bytes]:
    """Every file, through the door that verifies it."""
    content = {}
    for name, facts in found.manifest.files.items():
        with found.open(name) as file:
            content[name] = file.read(facts.size)
    return content


def _names(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def test_the_manifest_tells_step_sequence_facts_and_every_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):  # a run folder that is gone does not come back
        _save(tmp_path / "a" / "checkpoints", 7)
    saved = _save(tmp_path / "checkpoints", 7)
    content = json.loads((saved.folder / MANIFEST).read_text(encoding="utf-8"))
    assert saved.folder.name == "step-00000007"
    assert (content["step"], content["sequence"], content["recipe_sha256"]) == (7, 1, "abc")
    assert content["files"].keys() == set(FILES)
    assert content["files"]["weights"]["size"] == len(_content(7, "weights"))
    assert find_checkpoints(tmp_path / "checkpoints") == ([saved], [])
    assert _read(open_checkpoint(saved.folder)) == {name: _content(7, name) for name in FILES}
    assert find_checkpoints(tmp_path / "nowhere") == ([], [])


def test_rotation_goes_by_the_order_of_the_saves_and_keeps_the_best(tmp_path: Path) -> None:
    _save(tmp_path, 0)
    rotate(tmp_path, 2)
    assert _names(tmp_path) == ["step-00000000"]  # it goes with the first after it
    for step in (10, 20, 30, 5, 6):
        _save(tmp_path, step)
    os.utime(tmp_path / "step-00000010", (2e9, 2e9))  # times of files say nothing
    rotate(tmp_path, 2, losses={0: 0.01, 10: 0.9, 20: 0.2, 5: 0.8, 99: 0.1})
    assert _names(tmp_path) == ["step-00000005", "step-00000006", "step-00000020"]
    rotate(tmp_path, 1)
    assert _names(tmp_path) == ["step-00000006"]


def test_a_damaged_checkpoint_is_not_counted_by_rotation_and_is_replaced_at_its_step(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        _save(tmp_path, step)
    (tmp_path / "step-00000003" / "weights").unlink()
    rotate(tmp_path, 2)
    assert _names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]
    again = _save(tmp_path, 3)
    assert again.manifest.sequence == 4
    assert _read(again)["weights"] == _content(3, "weights")
    assert _names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]


def test_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    for name in (".tmp-2-999999", ".tmp-removed-0-999999"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"half")
    assert reap(tmp_path) == 2
    assert _names(tmp_path) == ["step-00000001"]
    assert reap(tmp_path / "nowhere") == 0


# Every call of a save fails in turn

CALLS = ("mkdir", "open", "write", "fsync", "close", "rename", "unlink", "rmdir")


@contextmanager
def _failing(at: int | None, number: int, *, stays: bool = False) -> Iterator[list[str]]:
    """The calls of `os` by name; the one at position `at` fails, with `stays` also those that need room after it."""
    seen: list[str] = []

    def shim(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            seen.append(name)
            now = len(seen) - 1
            if now == at or (stays and at is not None and now > at and name in ("mkdir", "write", "fsync")):
                if name == "close":
                    real(*args)  # a failed close closes all the same
                raise OSError(number, os.strerror(number))
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, shim(name, getattr(os, name)))
        yield seen


def _calls_of_a_save(parent: Path, at: int | None = None, number: int = 0, *, stays: bool = False) -> list[str]:
    """Save and rotate beside an older checkpoint."""

    def is_it(error: OSError) -> bool:  # when a close fails, the standard library's rmtree closes a second time
        return number in (error.errno, getattr(error.__context__, "errno", None))

    _save(parent, 1)
    fails = nullcontext() if at is None else pytest.raises(OSError, check=is_it)
    with _failing(at, number, stays=stays) as seen, fails:
        _save(parent, 2)
        rotate(parent, 1)
    return seen


def test_files_are_synced_before_the_manifest_and_all_before_the_rename(tmp_path: Path) -> None:
    seen = _calls_of_a_save(tmp_path / "checkpoints")
    order = [name for name in seen if name in ("mkdir", "fsync", "rename")]
    # three files, the manifest, the folder; the rename; its parent; and only then the older one goes
    assert order == ["mkdir", *["fsync"] * 5, "rename", "fsync", "rename"]
    assert seen.count("write") >= 7
    assert seen.index("rmdir") > max(i for i, name in enumerate(seen) if name == "fsync")


@pytest.mark.parametrize(("number", "stays"), [(errno.EIO, False), (errno.ENOSPC, True), (errno.EDQUOT, True)])
def test_whatever_call_fails_the_old_or_the_new_one_is_whole(tmp_path: Path, number: int, stays: bool) -> None:
    count = len(_calls_of_a_save(tmp_path / "counted"))
    assert count > 25
    survived = set()
    for at in range(count):
        parent = tmp_path / f"{number}-{at}"
        seen = _calls_of_a_save(parent, at, number, stays=stays)
        assert len(seen) > at
        whole, damaged = find_checkpoints(parent)
        assert whole, f"call {at} ({seen[at]}) lost both"
        assert not damaged
        for found in whole:
            assert _read(found) == {name: _content(found.step, name) for name in FILES}
        survived.add(whole[0].step)
        reap(parent)
        assert all(name.startswith("step-") for name in _names(parent))
        assert _save(parent, 3).manifest.sequence > whole[0].manifest.sequence
    assert survived == {1, 2}


# The thread that hashes


class _SlowHash:
    """A hash that looks at what it is given a little later."""

    def __init__(self) -> None:
        self._hash = hashlib.new("sha256")
        self.hexdigest = self._hash.hexdigest

    def update(self, piece: memoryview) -> None:
        time.sleep(0.05)
        self._hash.update(piece)


def _hashing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("sha256")]


def test_a_file_is_hashed_beside_the_calls_of_the_disk_which_stay_in_their_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(0).randbytes(3_000_001)
    callers, beside = set(), []
    write, readv = os.write, os.readv

    def part(descriptor: int, piece: memoryview) -> int:
        callers.add(threading.current_thread())
        beside.append(len(_hashing()))
        return write(descriptor, piece[:700_001])  # a disk may take less than it is given

    def parts(descriptor: int, pieces: list[memoryview]) -> int:
        callers.add(threading.current_thread())
        return readv(descriptor, [pieces[0][:600_001]])

    monkeypatch.setattr(hashlib, "sha256", _SlowHash)
    monkeypatch.setattr(os, "write", part)
    monkeypatch.setattr(os, "readv", parts)
    writer = CheckpointWriter(tmp_path)
    with writer.open("large") as file:
        for start in (0, 10, 1_500_000):
            end = {0: 10, 10: 1_500_000}.get(start, len(data))
            again = bytearray(data[start:end])
            file.write(memoryview(again))
            again[:] = bytes(len(again))  # what was given may be used for others at once
    assert (tmp_path / "large").read_bytes() == data
    assert writer.files["large"] == FileFacts(len(data), hashlib.new("sha256", data).hexdigest())
    found = Checkpoint(tmp_path, Manifest(1, 1, {}, writer.files))
    into = bytearray(1_700_000)
    with found.open("large") as reader:
        reader.readinto(memoryview(into))
        assert into == data[: len(into)]
        into[:] = bytes(len(into))
        assert len(_hashing()) == 1
    assert callers == {threading.current_thread()}
    assert beside[0] == 0  # ten bytes are hashed at once
    assert set(beside[1:]) == {1}
    assert _hashing() == []


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_neither_a_thread_nor_a_folder_outlives_a_file_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(*_: object) -> None:
        assert len(_hashing()) == 1
        raise failure

    _save(tmp_path, 1)
    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(type(failure)) as caught:
        _save(tmp_path, 2)
    assert caught.value is failure
    assert _hashing() == []
    assert _names(tmp_path) == ["step-00000001"]


def test_a_process_may_fork_and_end_between_and_amid_saves(tmp_path: Path) -> None:
    """A child has none of its parent's threads, and starts its own; none of them keeps a process from ending."""
    program = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from simpo_cli.run.checkpoint import CheckpointWriter
writer = CheckpointWriter(Path({str(tmp_path)!r}))
def save(name):
    with writer.open(name) as file:
        file.write(bytes(6_000_000))
save("first")
child = os.fork()
save("of the child" if child == 0 else "of the parent")
if child == 0:
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
kept = writer.open("never ended")
kept.__enter__().write(bytes(6_000_000))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "never ended", "of the child", "of the parent"]


# Whatever happens to a file is noticed


def _flip(file: Path, at: int, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.write_bytes(data)


def _edit(folder: Path, **changes: Any) -> None:
    """An edit by somebody who keeps the layout and does not know the rule for the last line."""
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for name in changes.pop("without", ()):
        (folder / name).unlink()
        del content["files"][name]
    (folder / MANIFEST).write_text(json.dumps({**content, **changes}, indent=2) + "\n", encoding="utf-8")


def _swap(first: Path, second: Path) -> None:
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


def _link(file: Path) -> None:
    elsewhere = file.parent.parent / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def _replace(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


OF_BYTES: Mapping[str, Callable[[bytes], bytes]] = {
    "cut by a byte": lambda data: data[:-1],
    "emptied": lambda _: b"",
    "longer": lambda data: data + b"\n",
    "with a page of zeros": lambda data: data[:99] + b"\0" * 64 + data[163:],
}
HARM: Mapping[str, Callable[[Path], Any]] = {
    **{
        f"{name} {what}": lambda f, name=name, change=change: _replace(f / name, change)
        for name, (what, change) in product((*FILES, MANIFEST), OF_BYTES.items())
    },
    **{f"{name} missing": lambda f, name=name: (f / name).unlink() for name in (*FILES, MANIFEST)},
    "a link in place of a file": lambda f: _link(f / "weights"),
    "two files swapped": lambda f: _swap(f / "weights", f / "moments"),
    "a file too many": lambda f: (f / "extra").write_bytes(b"x"),
    "a folder too many": lambda f: (f / "extra").mkdir(),
    "another step in the manifest": lambda f: _edit(f, step=8),
    "another sequence in the manifest": lambda f: _edit(f, sequence=99),
    "another fact in the manifest": lambda f: _edit(f, recipe_sha256="def"),
    "a file taken out of the manifest": lambda f: _edit(f, without=["moments"]),
    "a manifest that is no object": lambda f: (f / MANIFEST).write_text("[]\n", encoding="utf-8"),
    "a manifest of something else": lambda f: (f / MANIFEST).write_text('{"step": 1}\n', encoding="utf-8"),
    "a manifest that is too deep": lambda f: (f / MANIFEST).write_text("[" * 100_000, encoding="utf-8"),
    "the folder of another step": lambda f: f.rename(f.with_name("step-00000009")),
}


def _is_damaged(parent: Path) -> bool:
    whole, damaged = find_checkpoints(parent)
    if damaged:
        assert not whole
        return True
    try:
        for found in whole:
            _read(found)
    except DamagedCheckpointError:
        return True
    return False


@pytest.mark.parametrize("harm", HARM)
def test_harm_is_noticed(tmp_path: Path, harm: str) -> None:
    folder = _save(tmp_path / "checkpoints", 7).folder
    assert not _is_damaged(tmp_path / "checkpoints")
    HARM[harm](folder)
    assert _is_damaged(tmp_path / "checkpoints")


def test_a_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    saved = _save(tmp_path / "checkpoints", 7)
    for name in FILES:
        whole = (saved.folder / name).read_bytes()
        for at in range(0, len(whole), 997):
            _flip(saved.folder / name, at, at % 8)
            assert _is_damaged(tmp_path / "checkpoints"), f"bit {at % 8} of byte {at} of {name}"
        (saved.folder / name).write_bytes(whole)
    assert not _is_damaged(tmp_path / "checkpoints")
    manifest = saved.manifest.as_bytes()
    for at in range(8 * len(manifest)):
        changed = bytearray(manifest)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(ValueError, match=r"manifest|written|JSON|utf-8|Expecting|Invalid|Extra|Unterminated|line"):
            Manifest.from_bytes(bytes(changed))


def test_a_file_that_makes_its_reader_stumble_is_called_damaged_and_not_a_bug(tmp_path: Path) -> None:
    saved = _save(tmp_path, 7)
    _replace(saved.folder / "weights", lambda b: b"\xff" + b[1:])
    with pytest.raises(DamagedCheckpointError, match="weights holds other bytes"), saved.open("weights"):
        raise KeyError("what a parser says of nonsense")
    with pytest.raises(KeyError), saved.open("moments"):
        raise KeyError("a bug is not the file's fault")
