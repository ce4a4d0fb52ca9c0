"""Disks that are really full, really read-only, or gone; limits of the system; and every command that writes.

What needs the rights to mount a file system is skipped without them, and the reason is said.
"""

import errno
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpo_cli.errors import ExitCode
from simpo_cli.run import folder as run_folder
from simpo_cli.run.manifest import find_checkpoints
from simpo_cli.run.verify import verify_run
from simpo_cli.train import outcome, saving
from simpo_cli.train.observers import Recorder
from tests.faults.calls import go_on, no_page, temporary
from tests.faults.forked import Ended, run_child

_BIG = "size=64m"


@dataclass(frozen=True, slots=True)
class Row:
    """One fault: what it was, the exit code, the first line that was said, and what is wrong with that."""

    fault: str
    code: int
    said: str
    problems: Sequence[str]


def may_mount(place: Path) -> str:
    """Why no file system can be mounted here; empty where one can."""
    try:
        with _mounted(place / "trial", _BIG):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no file system can be mounted: {getattr(error, 'stderr', '') or error}".strip()


class RealDisks:
    """The faults in one place, which `make_place` has filled, with `runs/unbroken` in it, a run of four steps."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._unbroken = place / "runs" / "unbroken"

    def without_mounting(self, *, quick: bool = False) -> Iterator[Row]:
        """Faults that everybody may cause; with `quick` one of each kind."""
        long = "x" * 300
        yield self._refused("a name that is too long", f"output_dir=runs/{long}", None, errno.ENAMETOOLONG, whole=False)
        if not quick:
            deep = "/".join(["y" * 200] * 30)
            yield self._refused("a path that is too long", f"output_dir={deep}", None, errno.ENAMETOOLONG, whole=False)
        limits = (("metrics.jsonl", _limit_metrics), ("the first checkpoint", lambda: _limit(100_000)))
        for name, arrange in limits[: 1 if quick else None]:
            yield self._refused(f"RLIMIT_FSIZE, met by {name}", "output_dir=runs/limited", arrange, errno.EFBIG)
        harms: Sequence[tuple[str, Callable[[Path], Any]]] = (
            ("the run folder moved, and another put in its place", _replace),
            ("the run folder deleted while it trains", lambda run: shutil.rmtree(run)),
            ("the folder above it deleted while it trains", lambda run: shutil.rmtree(run.parent)),
        )
        for name, harm in harms[: 1 if quick else None]:
            run = self._place / "deep" / "gone"
            yield self._refused(
                name,
                "output_dir=deep/gone",
                lambda harm=harm, run=run: _at_step(3, lambda _: harm(run)),
                errno.ENOENT,
                whole=False,
            )
            kept = [file.name for file in run.rglob("*")] if run.exists() else []
            if kept not in ([], ["somebody's.txt"]):
                yield Row(name, 0, "", [f"{kept} was written into a folder that is not the run's"])
            shutil.rmtree(self._place / "deep", ignore_errors=True)

    def with_mounting(self, *, quick: bool = False) -> Iterator[Row]:
        """A tmpfs that fills up, and places that become read-only; with `quick` one of each kind."""
        disk = self._place / "disk"
        own = "output_dir=disk/run"
        with _mounted(disk, _BIG):
            _mount("-o", "remount,ro", str(disk))
            yield self._refused("a read-only disk", own, None, errno.EROFS, whole=False)
        commit = saving
        full = (
            ("in the middle of a checkpoint", lambda: _before(commit, "commit", 3, _fill(disk, 200_000))),
            ("after the files of a checkpoint", lambda: _before(commit, "commit", 3, _fill(disk, 520_000))),
            ("before a line of metrics.jsonl", lambda: _at_step(3, _fill(disk))),
            ("before model/", lambda: _before(outcome, "save_model", 0, _fill(disk))),
            ("in the middle of model/", lambda: _before(outcome, "save_model", 0, _fill(disk, 60_000))),
            ("before evals-pairs.jsonl", lambda: _before(outcome, "write_pairs", 0, _fill(disk))),
        )
        for name, arrange in full[: 1 if quick else None]:
            with _mounted(disk, _BIG):
                # a file's last page may take the line of the log: then the save after it finds too little room
                says = "No space left on device|need 1.5 MB, free 0.0 MB"
                yield self._refused(f"a disk full {name}", own, arrange, None, says=says, mend=(disk / "filler").unlink)
        if quick:
            return
        with _mounted(disk, "size=1m"):
            says = r"need \d+\.\d MB, free \d"
            yield self._refused("a disk too small for the run", own, None, None, says=says, whole=False)
        with _mounted(disk, _BIG):
            _fill(disk)(None)
            yield self._refused(
                "a full disk under the cache of the tokens", "output_dir=runs/cached", None, errno.ENOSPC,
                cache=disk / "cache", mend=(disk / "filler").unlink, whole=False,
            )  # fmt: skip
        with _mounted(disk, _BIG):
            (disk / "run").mkdir()
            try:
                yield self._refused(
                    "a disk that turns read-only while it trains", own, lambda: _at_step(3, lambda _: _read_only(disk)),
                    errno.EROFS, mend=lambda: _unmount(disk),
                )  # fmt: skip
            finally:
                _unmount(disk, quietly=True)

    def other_commands(self) -> Iterator[Row]:
        """Every other command that writes, on a full and on a read-only disk, beside a file of an earlier time."""
        disk = self._place / "disk"
        for name, number, make in (
            ("full", errno.ENOSPC, _fill(disk)),
            ("read-only", errno.EROFS, lambda _: _mount("-o", "remount,ro", str(disk))),
        ):
            with _mounted(disk, _BIG):
                shutil.copytree(self._unbroken, disk / "run")
                page = (disk / "run" / "report.html").write_text('<meta name="generator" content="simpo">old')
                make(None)
                for command in (
                    ("stats", "prefs.jsonl", "--output", "disk/out.json"),
                    ("stats", "prefs.jsonl", "--html", "disk/out.html"),
                    ("stats", "prefs.jsonl", "--write-clean", "disk/out.jsonl"),
                    ("eval", "runs/unbroken", "--output", "disk/out.json"),
                    ("report", "disk/run"),
                    ("recipe", "copy", "demo", "disk/out.yaml"),
                    ("export", "runs/adapters", "--merge", "--output", "disk/merged"),
                ):
                    ended = run_child(self._place, command)
                    problems = [*_told(ended, number), *(f"left {file}" for file in temporary(disk))]
                    problems += [f"wrote {file.name}" for file in disk.glob("out*") if file.stat().st_size]
                    if (disk / "run" / "report.html").stat().st_size != page:
                        problems.append("the old page is gone")
                    option = next((word for word in command if word.startswith("--")), "")
                    yield Row(f"simpo {command[0]} {option} on a {name} disk", ended.code, _first(ended), problems)

    def make_adapters(self) -> None:
        """A run with adapters, for `simpo export`."""
        ended = run_child(self._place, ["train", "run.yaml", "train.max_steps=1", "output_dir=runs/adapters",
                                        "model.lora.rank=2"], no_page)  # fmt: skip
        assert ended.code == 0, ended.said

    def _refused(
        self,
        fault: str,
        where: str,
        arrange: Callable[[], None] | None,
        number: int | None,
        *,
        says: str = "",
        mend: Callable[[], Any] = lambda: None,
        cache: Path | None = None,
        whole: bool = True,
    ) -> Row:
        """A run that meets the fault, and the same again when it is mended."""
        run = self._place / where.removeprefix("output_dir=")
        command = ["train", "run.yaml", "train.max_steps=4", "--resume", where]

        def before() -> None:
            no_page()
            if cache is not None:
                os.environ["SIMPO_CACHE"] = str(cache)
            if arrange is not None:
                arrange()

        ended = run_child(self._place, command, before)
        problems = list(_told(ended, number, says))
        if whole:  # then there is something of the run left
            problems += [f"left {file}" for file in temporary(run)]
            saved, damaged = find_checkpoints(run / "checkpoints")
            problems += [str(error) for error in damaged]
            if verify_run(run).damaged:
                problems.append(f"damaged: {verify_run(run).damaged}")
            mend()
            if problem := go_on(self._place, command, run, self._unbroken):
                problems.append(f"from {[one.step for one in saved]}: {problem}")
            shutil.rmtree(run)
        return Row(fault, ended.code, _first(ended), problems)


def _told(ended: Ended, number: int | None, says: str = "") -> Iterator[str]:
    if ended.code != ExitCode.ENVIRONMENT or "Traceback" in ended.said:
        yield f"ended with {ended.code}: {ended.said[-800:]}"
    reason = says if number is None else re.escape(os.strerror(number))
    if not re.search(reason, _first(ended)):
        yield f"does not say {reason}: {ended.said[-800:]}"
    if not re.search(r"Error: .*\n  \S", ended.said):
        yield "does not say what to do"


def _first(ended: Ended) -> str:
    return next((line for line in ended.said.splitlines() if line.startswith("Error: ")), "")


def _at_step(step: int, do: Callable[[None], Any]) -> None:
    """Do something before a step is recorded."""
    record = Recorder.step

    def recording(self: Recorder, row: Any) -> None:
        if row.step == step:
            do(None)
        record(self, row)

    Recorder.step = recording  # type: ignore[method-assign]


def _before(module: Any, name: str, step: int, do: Callable[[None], Any]) -> None:
    """Do something before a function runs; where a step is given, only when it is the second argument."""
    real = getattr(module, name)

    def call(*arguments: Any, **options: Any) -> Any:
        if not step or arguments[1] == step:
            do(None)
        return real(*arguments, **options)

    setattr(module, name, call)


def _limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _limit_metrics() -> None:
    """Only half of the line of step 3 fits."""
    append = run_folder._append

    def appending(file: Path, line: bytes) -> None:
        if file.name == "metrics.jsonl" and b'"step": 3' in line:
            _limit(file.stat().st_size + len(line) // 2)
        try:
            append(file, line)
        finally:
            _limit(resource.RLIM_INFINITY)

    run_folder._append = appending


def _fill(disk: Path, leave: int = 0) -> Callable[[None], None]:
    """Fill a disk to its last byte but so many."""

    def fill(_: None) -> None:
        with (disk / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
            if leave:
                file.truncate(max(0, file.tell() - leave))

    return fill


def _replace(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))
    run.mkdir()
    (run / "somebody's.txt").write_text("mine", encoding="utf-8")


@contextmanager
def _mounted(at: Path, options: str) -> Iterator[None]:
    at.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", options, "tmpfs", str(at))
    try:
        yield
    finally:
        _unmount(at)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)


def _unmount(at: Path, *, quietly: bool = False) -> None:
    found = subprocess.run(["findmnt", "-rno", "TARGET"], check=True, capture_output=True, text=True).stdout.split()
    if not quietly or found.count(str(at)) > 1:
        subprocess.run(["umount", str(at)], check=True, capture_output=True)


def _read_only(disk: Path) -> None:
    """Cover a place by itself, read-only: what is open stays open, and nothing can be opened for writing."""
    _mount("--bind", str(disk), str(disk))
    _mount("-o", "remount,bind,ro", str(disk))
