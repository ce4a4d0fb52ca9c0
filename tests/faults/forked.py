"""Runs of `simpo` in children of this process, and twins of them that strace looks at.

This process must have imported what a run needs and run no tensor operation: then a child that is forked from it
starts at once and lacks no thread. A child may stop at a place of its run and be doubled there as often as one likes.
Each twin goes on from that place with strace at its side, which counts the system calls of its main thread and can make
any of them fail, or be its last.
"""

import os
import re
import select
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.faults.children import be_a_run, line_of

SECONDS = 120
SURVIVED = 77  # exit code of a twin that came to the end of what is looked at
CHANGING = (
    *("openat", "mkdir", "mkdirat", "write", "pwrite64", "writev", "fsync", "fdatasync", "ftruncate", "close"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "chmod", "fchmod", "fchmodat", "utimensat"),
    *("copy_file_range", "sendfile"),
)
LOOKING = (
    *("read", "pread64", "readv", "lseek", "stat", "lstat", "fstat", "newfstatat", "statx", "statfs", "fstatfs"),
    *("getdents64", "flock"),
)
_MARK, _MARKS = "/simpo-mark-", ("access", "faccessat", "faccessat2")
_LINE = re.compile(r"(?P<call>\w+)\(.*")

Arrange = Callable[[Callable[[], None]], None]  # in the child; calls what it is given at the place to stop


@dataclass(frozen=True, slots=True)
class Call:
    """A system call: the `number`-th of this name since strace was there, and what strace showed of it."""

    name: str
    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: exit code (below 0 the signal), what it said on both streams, and its calls if traced."""

    code: int
    said: str
    calls: Sequence[Call] = ()


def has_strace() -> bool:
    """Whether strace is there and may look at a process of ours."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


def mark(what: str) -> None:
    """Leave a mark in the trace."""
    os.access(_MARK + what, os.F_OK)


def between(calls: Sequence[Call], first: str, last: str) -> list[Call]:
    """The calls between two marks."""
    places = {call.text.split(_MARK)[1].split('"')[0]: i for i, call in enumerate(calls) if _MARK in call.text}
    return list(calls[places[first] + 1 : places.get(last, len(calls))])


def run_child(place: Path, command: Sequence[str], before: Callable[[], None] = lambda: None) -> Ended:
    """Run one command line of `simpo` in a place to its end; `before` is called in the child before it runs."""
    log = place / "child.log"
    pid = os.fork()
    if pid == 0:
        be_a_run(place, command, log, before)
    return Ended(_code(pid), log.read_text(encoding="utf-8", errors="replace"))


class Twins:
    """A child of `simpo` that has stopped in its run, where `arrange` has it, to be doubled there; a context."""

    def __init__(self, place: Path, command: Sequence[str], arrange: Arrange) -> None:
        self._place, self._log = place, place / "twins.log"
        asked, answered, go = os.pipe(), os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            for descriptor in (asked[1], answered[0], go[1]):  # so that it ends when this process does
                os.close(descriptor)
            be_a_run(place, command, self._log, lambda: arrange(lambda: _double(asked[0], answered[1], go[0])))
        for descriptor in (asked[0], answered[1], go[0]):
            os.close(descriptor)
        self._pid, self._ask, self._answers, self._go = pid, asked[1], answered[0], go[1]

    def __enter__(self) -> "Twins":
        assert self._answer() == "stopped", self._log.read_text(encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._ask)
        _code(self._pid)
        os.close(self._answers)
        os.close(self._go)

    def run(self, inject: str = "") -> Ended:
        """Let a twin go on to its end; strace injects something such as `fsync:error=EIO:when=3`, or only looks."""
        os.truncate(self._log, 0)
        trace = self._place / "twins.trace"
        os.write(self._ask, b"x")
        pid = self._answer()
        traced = ",".join(f"?{name}" for name in (*CHANGING, *LOOKING, *_MARKS))
        options = ["-p", pid, "-y", "-o", str(trace), "-e", f"trace={traced}", "-e", "signal=none"]
        options += ["-e", f"inject={inject}"] if inject else []
        strace = subprocess.Popen(["strace", *options], stderr=subprocess.PIPE, text=True)
        assert strace.stderr is not None
        attached = strace.stderr.readline()
        assert "attached" in attached, attached
        os.write(self._go, b"x")
        code = int(self._answer())
        strace.communicate()
        return Ended(code, self._log.read_text(encoding="utf-8", errors="replace"), _calls(trace))

    def _answer(self) -> str:
        return line_of(self._answers, SECONDS)


def _double(asked: int, answers: int, go: int) -> None:
    """Stay here and make a twin whenever one is asked for; returns in the twins."""
    os.write(answers, b"stopped\n")
    while os.read(asked, 1):
        pid = os.fork()
        if pid == 0:
            os.write(answers, f"{os.getpid()}\n".encode())
            if not os.read(go, 1):
                os._exit(1)
            return
        os.write(answers, f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
    os._exit(0)


def _code(pid: int) -> int:
    watched = os.pidfd_open(pid)
    try:
        assert select.select([watched], [], [], SECONDS)[0], f"child {pid} does not end"
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(watched)


def _calls(trace: Path) -> list[Call]:
    calls, seen = [], dict.fromkeys((*CHANGING, *LOOKING, *_MARKS), 0)
    for line in trace.read_text(encoding="utf-8", errors="replace").splitlines():
        found = _LINE.match(line)
        if found is not None and found["call"] in seen:
            seen[found["call"]] += 1
            calls.append(Call(found["call"], seen[found["call"]], line))
    return calls
