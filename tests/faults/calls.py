"""Every system call of a part of a run made to fail, or made the last one, and what is left looked at.

Three parts: the start of a run with an empty cache up to the checkpoint of step 0; one logged, evaluated and saved step
in the middle; and the end, from the last checkpoint to the page. Whatever state a fault leaves, a run that goes on from
it has to end with the bits of a run that met no fault; equal states are gone on with once.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from simpo_cli.errors import ExitCode
from simpo_cli.report.watch import WithReport
from simpo_cli.run.folder import LOGS
from simpo_cli.run.manifest import find_checkpoints
from simpo_cli.train.observers import Recorder
from simpo_cli.train.saving import CheckpointSaver
from tests.faults.forked import CHANGING, LOOKING, SURVIVED, Call, Ended, Twins, between, mark, run_child
from tests.train.runs import final_state, rows, timeless

TRAIN = ("train", "run.yaml", "train.max_steps=4", "--resume")
ERRORS = ("ENOSPC", "EIO", "EDQUOT")
_TEMPORARY = re.compile(r"\.tmp-.*|\..*\.tmp|\.[\w.-]+\.\d+|\.unfinished-.*")
_PROCESS = re.compile(r"(\.tmp-(?:\w+-)?\d+)-\d+.*")  # what a half written checkpoint holds makes no difference
_OURS = re.compile(r"runs/run\b|/cache/")


@dataclass(frozen=True)
class Part:
    """A part of a run that is looked at call by call."""

    name: str
    arrange: Callable[[Callable[[], None]], None]  # has a child stop where it begins, mark that, and leave at its end
    calls: tuple[str, ...]  # names of those that are made to fail
    errors_at_each: int  # different ones; with fewer than all they take turns
    cold: bool = False  # it begins with no run and an empty cache


@dataclass
class Counts:
    """What the faults in one part came to."""

    points: int = 0  # calls of the part
    cases: Counter[str] = field(default_factory=Counter)  # faults by kind: the errors and SIGKILL
    refused: int = 0  # exit code 4 with the reason and a way out
    harmless: int = 0  # the part was completed all the same
    states: set[str] = field(default_factory=set)  # different ones left behind, all gone on with
    wrong: list[str] = field(default_factory=list)  # everything that should not be


def _leave_after(save: Callable[[CheckpointSaver], None], step: int) -> Callable[[CheckpointSaver], None]:
    def saving(self: CheckpointSaver) -> None:
        save(self)
        if self.saved_at == step:
            mark("end")
            os._exit(SURVIVED)

    return saving


def no_page() -> None:
    """The page takes longer than all else, and is of the end."""
    WithReport._write = lambda _: None  # type: ignore[method-assign]


def _from_the_start(stop: Callable[[], None]) -> None:
    no_page()
    CheckpointSaver.save = _leave_after(CheckpointSaver.save, 0)  # type: ignore[method-assign]
    stop()
    mark("begin")


def _step_three(stop: Callable[[], None]) -> None:
    no_page()
    record = Recorder.step

    def step(self: Recorder, row: object) -> None:
        if row.step == 3:  # type: ignore[attr-defined]
            stop()
            mark("begin")
        record(self, row)  # type: ignore[arg-type]

    Recorder.step = step  # type: ignore[method-assign, assignment]
    CheckpointSaver.save = _leave_after(CheckpointSaver.save, 3)  # type: ignore[method-assign]


def _from_the_last_checkpoint(stop: Callable[[], None]) -> None:
    save = CheckpointSaver.save

    def saving(self: CheckpointSaver) -> None:
        save(self)
        if self.saved_at == 4:
            stop()
            mark("begin")

    CheckpointSaver.save = saving  # type: ignore[method-assign]


PARTS = (
    Part("one step: logs, evaluation, checkpoint, rotation, run.json", _step_three, (*CHANGING, *LOOKING), len(ERRORS)),
    Part("the start: cache, recipe, notes, run.json, first checkpoint", _from_the_start, CHANGING, 1, cold=True),
    Part("the end: model/, evaluation, pairs, run.json, page", _from_the_last_checkpoint, CHANGING, 1),
)


class CallByCall:
    """The faults of system calls in one place, which `make_place` has filled."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._run = place / "runs" / "run"
        self._gone_on: dict[str, str] = {}
        ended = run_child(place, [*TRAIN, "output_dir=runs/unbroken"], no_page)
        assert ended.code == 0, ended.said
        self._unbroken = place / "runs" / "unbroken"

    def look_at(self, part: Part, one_in: int = 1) -> Counts:
        """Make the calls of a part fail, of so many one, and end the process there."""
        counts, errors = Counts(), cycle(ERRORS)
        _empty(self._run)
        if part.cold:
            shutil.rmtree(self._place / "cache")
        with Twins(self._place, TRAIN, part.arrange) as twins:
            before = self._place / "before"
            shutil.rmtree(before, ignore_errors=True)
            if self._run.exists():
                shutil.copytree(self._run, before)
            seen = twins.run()
            assert seen.code in (0, SURVIVED), seen.said
            points = [call for call in _points(between(seen.calls, "begin", "end")) if call.name in part.calls]
            counts.points = len(points)
            # not those of the cache, whose entries are hashed whenever they are used
            of_run = [call for call in between(seen.calls, "begin", "end") if "runs/run" in call.text]
            counts.wrong += unsynced(of_run, self._place)
            for point in points[::one_in]:
                faults = [f"error={next(errors)}" for _ in range(part.errors_at_each)]
                for fault in [*faults, "signal=KILL"]:
                    self._restore(before, cold=part.cold)
                    ended = twins.run(f"{point.name}:{fault}:when={point.number}")
                    self._count(counts, point, fault.split("=")[1], ended, before)
        return counts

    def _restore(self, before: Path, *, cold: bool) -> None:
        _empty(self._run)
        if cold:
            shutil.rmtree(self._place / "cache", ignore_errors=True)
            shutil.rmtree(self._run, ignore_errors=True)
        elif before.exists():
            shutil.copytree(before, self._run, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".lock"))

    def _count(self, counts: Counts, point: Call, fault: str, ended: Ended, before: Path) -> None:
        counts.cases[fault] += 1
        problems = list(_problems(fault, ended)) + list(_lost(self._run, before))
        counts.refused += ended.code == ExitCode.ENVIRONMENT
        counts.harmless += ended.code in (ExitCode.DONE, SURVIVED)
        if fault != "KILL":
            left = [str(file) for file in temporary(self._run)]
            if left and not re.search(r"\.tmp-removed|unlink|rmdir", point.text):
                problems.append(f"left {left}")
        state = _state(self._run)
        counts.states.add(state)
        if state not in self._gone_on:
            self._gone_on[state] = self._go_on()
        problems += [self._gone_on[state]] if self._gone_on[state] else []
        counts.wrong += [f"{fault} at {point.text[:200]}\n    {problem}\n{ended.said[-600:]}" for problem in problems]

    def _go_on(self) -> str:
        """Go on from the state of the run, elsewhere, and say how its end differs from the unbroken run's."""
        again = self._place / "runs" / "again"
        shutil.rmtree(again, ignore_errors=True)
        if self._run.exists():
            shutil.copytree(self._run, again)
        if problem := go_on(self._place, [*TRAIN, "output_dir=runs/again"], again, self._unbroken):
            return problem
        steps = [row["step"] for row in rows(again / "metrics.jsonl")]
        if steps != [1, 2, 3, 4] or list(temporary(again)):
            return f"going on left steps {steps} and {list(temporary(again))}"
        return ""


def go_on(place: Path, command: Sequence[str], run: Path, unbroken: Path) -> str:
    """Go on with a run, and say how its end differs from the unbroken run's; empty where it does not."""
    ended = run_child(place, command, no_page)
    if ended.code != 0:
        return f"going on ended with {ended.code}: {ended.said[-500:]}"
    if final_state(run) != final_state(unbroken):
        return "going on gave other weights or moments"
    if any(timeless(run / name) != timeless(unbroken / name) for name in LOGS):
        return "going on gave other logs"
    return ""


def unsynced(calls: Sequence[Call], place: Path) -> list[str]:
    """What is renamed before the disk has it, or gone on from before the disk has the new name; it must be nothing.

    A file is synced after its last byte and before its own or its folder's new name; a folder after its last entry and
    before its new name; and after a folder of files has its new name, the folder above it before anything else changes
    its name or goes. Relative names are below `place`.
    """
    dirty: dict[str, str] = {}  # by path: what the disk may not have
    named: str | None = None  # a folder with an entry that the disk may not have
    wrong = []
    for call in calls:
        names = [os.path.join(place, name).rstrip("/") for name in re.findall(r'"([^"]*)"', call.text)]
        opened = re.search(r"\w+\(\d+<([^>]*)>", call.text)
        match call.name:
            case "openat" if "O_CREAT" in call.text:
                dirty[os.path.dirname(names[0])] = f"the entry of {names[0]}"
            case "write" | "pwrite64" | "writev" | "sendfile" | "ftruncate" if opened:
                dirty[opened[1]] = "its content"
            case "fsync" | "fdatasync" if opened:
                dirty.pop(opened[1], None)
                named = None if named == opened[1] else named
            case "rename" | "renameat" | "renameat2" | "unlink" | "unlinkat" | "rmdir":
                if named is not None:
                    wrong.append(f"{named} was not synced before {call.text}")
                    named = None
                source, target = (names[0], names[-1]) if call.name.startswith("rename") else ("", "")
                inside = os.path.dirname(source)
                if inside == os.path.dirname(target) and os.path.basename(inside).startswith("."):
                    if source in dirty:  # in a folder that gets its own name later
                        dirty[target] = dirty.pop(source)
                    continue
                under = [path for path in dirty if source and (path == source or path.startswith(f"{source}/"))]
                wrong += [f"{path} lacks {dirty.pop(path)} before {call.text}" for path in under]
                if any(os.path.dirname(path) == source for path in _created(calls, place)) and source:
                    named = os.path.dirname(target)
    if named is not None:
        wrong.append(f"{named} was not synced at the end")
    return wrong


def _created(calls: Sequence[Call], place: Path) -> set[str]:
    created = [call for call in calls if call.name == "openat" and "O_CREAT" in call.text]
    return {os.path.join(place, re.findall(r'"([^"]*)"', call.text)[0]) for call in created}


def _points(calls: list[Call]) -> Iterator[Call]:
    """The calls that are about files of the run or of the cache."""
    for call in calls:
        if _OURS.search(call.text) and "EEXIST" not in call.text:
            yield call


def _problems(fault: str, ended: Ended) -> Iterator[str]:
    """How the process should not have ended."""
    if fault == "KILL":
        if ended.code != -signal.SIGKILL:
            yield f"ended with {ended.code}"
        return
    if ended.code not in (ExitCode.ENVIRONMENT, ExitCode.DONE, SURVIVED) or "Traceback" in ended.said:
        yield f"ended with {ended.code}"
    if ended.code == ExitCode.ENVIRONMENT:
        said = ended.said[ended.said.rfind("Error: ") :].splitlines()
        reason = os.strerror(getattr(errno, fault))
        if "cannot be read again" in said[0]:  # libraries have words of their own for it
            reason = said[0]
        if reason not in said[0] or not re.search(r"runs/run|/cache", said[0]) or len(said) < 2:
            yield f"said {said}"


def _lost(run: Path, before: Path) -> Iterator[str]:
    """What of the checkpoints before is gone without a newer one, or is damaged."""
    then, _ = find_checkpoints(before / "checkpoints")
    now, damaged = find_checkpoints(run / "checkpoints")
    yield from (str(error) for error in damaged)
    if then and (not now or now[0].step < then[0].step):
        yield f"step {then[0].step} is lost"
    for found in now:
        found.verify()
        for old in then:
            if old.step == found.step and old.manifest != found.manifest:
                yield f"step {old.step} is another"


def temporary(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if _TEMPORARY.fullmatch(file.name))


def _state(run: Path) -> str:
    """A digest of what going on depends on: checkpoints and logs, what times say aside, and what is half there."""
    digest = hashlib.sha256()
    names = {_PROCESS.sub(r"\1", file.relative_to(run).as_posix()): file for file in run.rglob("*") if file.is_file()}
    for name, file in sorted(names.items()):
        if name in LOGS:
            *lines, rest = file.read_bytes().split(b"\n")
            digest.update(repr((name, [json.loads(line)["step"] for line in lines], bool(rest))).encode())
        elif name == "run.json":
            document = json.loads(file.read_bytes())
            digest.update(repr((document["status"], document["step"])).encode())
        elif "/" in name and not name.startswith("."):
            timed = name.endswith((".jsonl", "progress.json", "manifest.json")) or ".tmp" in name
            digest.update(name.encode() + (b"" if timed else file.read_bytes()))
    return digest.hexdigest()


def _empty(run: Path) -> None:
    """Take everything out of a folder but its lock; the folder stays the one that it is."""
    for entry in run.iterdir() if run.exists() else ():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != ".lock":
            entry.unlink()
