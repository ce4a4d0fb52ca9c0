"""Faults of the disk, a few of each kind; `python -m tests.faults.disk` causes them all."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.calls import unsynced
from tests.faults.children import ROOT
from tests.faults.forked import Call, has_strace


def test_what_a_disk_refuses_is_exit_code_4_and_loses_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.disk", "--quick"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| a name that is too long | 4 | yes |" in done.stdout
    assert "| RLIMIT_FSIZE, met by metrics.jsonl | 4 | yes |" in done.stdout
    if not has_strace():
        pytest.skip("system calls were not made to fail: no strace")
    assert "| one step: logs, evaluation, checkpoint, rotation, run.json |" in done.stdout


def _call(name: str, text: str) -> Call:
    return Call(name, 1, f"{name}({text}")


CREATE = _call("openat", 'AT_FDCWD</p>, "c/.tmp-1/weights", O_WRONLY|O_CREAT|O_EXCL, 0666) = 3</p/c/.tmp-1/weights>')
WRITE = _call("write", '3</p/c/.tmp-1/weights>, "abc", 3) = 3')
SYNC_FILE = _call("fsync", "3</p/c/.tmp-1/weights>) = 0")
SYNC_FOLDER = _call("fsync", "4</p/c/.tmp-1>) = 0")
RENAME = _call("rename", '"c/.tmp-1", "c/step-1") = 0')
SYNC_PARENT = _call("fsync", "4</p/c>) = 0")
ROTATE = _call("rename", '"c/step-0", "c/.tmp-removed-0") = 0')
ORDER = [CREATE, WRITE, SYNC_FILE, SYNC_FOLDER, RENAME, SYNC_PARENT, ROTATE]


def test_the_look_at_a_trace_sees_every_sync_that_is_missing_or_late() -> None:
    assert unsynced(ORDER, Path("/p")) == []
    for missing in (SYNC_FILE, SYNC_FOLDER, SYNC_PARENT):
        assert len(unsynced([call for call in ORDER if call is not missing], Path("/p"))) == 1
    assert unsynced([CREATE, SYNC_FILE, WRITE, *ORDER[3:]], Path("/p"))
    assert unsynced([*ORDER[:3], RENAME, SYNC_FOLDER, SYNC_PARENT], Path("/p"))
    assert unsynced([*ORDER[:5], ROTATE, SYNC_PARENT], Path("/p"))
