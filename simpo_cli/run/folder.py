"""The run folder: made once, owned by one process, never silently overwritten; plain files, safe to read meanwhile.

run.json vouches for itself: its last entry is the sha256 of everything before it.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.files import disk_faults, object_in, parse, replacing, sync
from simpo_cli.redaction import redacted_values

CHECKPOINTS, IDENTITY, PROGRESS = "checkpoints", "identity.json", "progress.json"
WEIGHTS, OPTIMIZER, STEP_COUNTS = "weights.safetensors", "optimizer.safetensors", "optimizer.json"
RUN, MODEL, RECIPE = "run.json", "model", "recipe.yaml"
ROUNDS, STUDY = "rounds.json", "study.json"  # of folders that keep a recipe.yaml, too, and are no runs
BASE = "base"  # the model under a run's adapters, where that is a merge that nobody else has
METRICS, EVALS = "metrics.jsonl", "evals.jsonl"
EVAL_PAIRS, EVAL_SAMPLES = "evals-pairs.jsonl", "evals-samples.jsonl"
NOTES, REJECTED = "notes.jsonl", "rejected.jsonl"
ANSWERS = "answers.jsonl"
OUT_OF_MEMORY = ".memory.json"  # of a step of several processes, which are then started again
LOGS = (METRICS, EVALS, ANSWERS)
"""What a resumed run cuts back to its checkpoint."""

_RUN_FILES = (RUN, RECIPE, METRICS)
_LOCK, _OWNER = ".lock", ".owner"
_LOOKS_FOR_TOKEN, _SECONDS_BETWEEN_LOOKS = 20, 0.5  # a network file system may show a new file some seconds late
_UNFINISHED = re.compile(r"\.[\w.-]+\.\d+")  # .run.json.4711, on its way to be run.json


def holds_a_run(path: Path) -> bool:
    """Whether a folder is one that `simpo train` made."""
    is_other = any((path / name).exists() for name in (ROUNDS, STUDY))
    return not is_other and any((path / name).is_file() for name in _RUN_FILES)


class RunFolder:
    """An open run folder; close it when the run ends."""

    def __init__(self, path: Path, lock: FileLock | None) -> None:
        self.path = path
        self._lock, self._place = lock, _place(path)
        self._hashes: dict[str, Any] = {}
        self.lines: Counter[str] = Counter()
        """Lines that each log holds, as far as this process wrote or kept them."""

    @classmethod
    def create(cls, path: Path, *, fresh: bool = False, resume: bool = False) -> "RunFolder":
        """Make the folder, or take an empty one, or with `resume` one that holds a run.

        Args:
            fresh: set an existing run aside as NAME.old-TIMESTAMP instead of refusing; nothing is deleted.
            resume: take an existing run; what a process that died in it left unfinished is removed.

        Raises:
            UserError: the folder holds a run (without `fresh` and `resume`), something else, or another process's run;
                or it cannot be made.
        """
        require_usable(path, fresh=fresh, resume=resume)
        with disk_faults(f"the run folder {path} cannot be made", ", and see output_dir"):
            if fresh and holds_a_run(path):
                lock = _locked(path)
                path.rename(path.with_name(f"{path.name}.old-{datetime.now():%Y%m%d-%H%M%S}"))
                lock.release()
            path.mkdir(parents=True, exist_ok=True)
            folder = cls(path, _locked(path))
            require_usable(path, resume=resume)  # another process may have trained here while this one looked
            for entry in path.iterdir():
                if _UNFINISHED.fullmatch(entry.name):
                    entry.unlink()
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        folder.write_json(_OWNER, owner)
        return folder

    @classmethod
    def follow(cls, path: Path) -> "RunFolder":
        """The folder of a run that another process of it has locked and writes; what this one writes goes nowhere."""
        return cls(path, None)

    @property
    def is_followed(self) -> bool:
        """Whether another process writes it."""
        return self._lock is None

    def close(self) -> None:
        """Let others use the folder."""
        if self._lock is not None:
            self._lock.release()

    def write_text(self, name: str, text: str) -> None:
        """Write a whole file so that a reader finds the old or the new one, never half of it.

        Raises:
            UserError: the disk did not take it (exit code 4); the old file is as it was.
        """
        if self.is_followed:
            return
        with self._writing(name), replacing(self.path / name) as stream:
            stream.write(text)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON document, whole."""
        self.write_text(name, document_text(redacted_values(content)))

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write a file of JSON lines, whole."""
        self.write_text(name, "".join(_line(row) for row in rows))

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Add one line of JSON to a log, whole or not at all.

        Raises:
            UserError: the disk did not take it (exit code 4).
        """
        if self.is_followed:
            return
        line = _line(row).encode()
        with self._writing(name):
            _append(self.path / name, line)
        self.lines[name] += 1
        self._hash(name).update(line)

    def digest(self, name: str) -> str:
        """sha256 of the lines that a log holds, as far as this process wrote or kept them."""
        return str(self._hash(name).hexdigest())

    def sync_logs(self) -> None:
        """Wait until the disk has every line of the logs."""
        for name in () if self.is_followed else (*LOGS, NOTES):
            if (self.path / name).is_file():
                with self._writing(name):
                    sync(self.path / name)

    def cut_back(self, name: str, lines: int) -> list[dict[str, Any]]:
        """Keep the first lines of a log and forget the others, whole or not, by an atomic rewrite.

        Returns:
            The rows that are left, but for lines that were damaged; `self.lines` counts those too.
        """
        if self.is_followed:
            return []
        file = self.path / name
        with self._writing(name):
            text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        kept = text.split("\n")[:-1][:lines]  # behind the last line end there is nothing, or half a line
        whole = "".join(f"{line}\n" for line in kept)
        if text != whole:
            self.write_text(name, whole)
        self.lines[name] = len(kept)
        self._hashes[name] = hashlib.sha256(whole.encode())
        return [row for line in kept if (row := _row(line)) is not None]

    def _hash(self, name: str) -> Any:
        return self._hashes.setdefault(name, hashlib.sha256())

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Refuse to write where this run's folder is no longer: another's may have taken its name."""
        with disk_faults(f"{self.path / name} cannot be written", ", and run the same command with --resume"):
            if _place(self.path) != self._place:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            yield


def require_usable(path: Path, *, fresh: bool = False, resume: bool = False) -> None:
    """Refuse a path that a run must not take; looks and changes nothing.

    Raises:
        UserError: as in `RunFolder.create`.
    """
    with disk_faults(f"output_dir {path} cannot be used"):
        if path.exists() and not path.is_dir():
            raise UserError(f"output_dir {path} is a file.", "Name a folder that does not exist yet.", key="output_dir")
        if not path.is_dir():
            return
        for entry in path.iterdir():
            if entry.is_symlink():  # what is written, and what is removed, would be elsewhere
                raise UserError(
                    f"{entry} is a link; all files of a run are in its own folder.",
                    "Put what it leads to in its place, or name another output_dir; output_dir itself may be a link.",
                    key="output_dir",
                )
        # a process that is killed before its run has begun leaves no more than these
        if all(entry.name in (_LOCK, _OWNER) or _UNFINISHED.fullmatch(entry.name) for entry in path.iterdir()):
            return
    if not holds_a_run(path):
        raise UserError(
            f"output_dir {path} holds files that are not a run.",
            "Name a folder that is empty or does not exist yet.",
            key="output_dir",
        )
    if not fresh and not resume:
        raise UserError(
            f"{path} already holds a run.",
            f"Add --resume to resume it, or --fresh to set it aside as {path.name}.old-TIME and start anew, or "
            "name this run: name=NEW.",
        )


def require_own_model(run: Path) -> None:
    """Refuse a model/ that is a link: what it leads to is not what the run has saved."""
    if (run / MODEL).is_symlink():
        raise UserError(
            f"{run / MODEL} is a link, and what it leads to is not of this run.",
            "Put the run's model in its place, or name the folder that it leads to.",
        )


def require_token(file: Path, token: str) -> None:
    """Refuse a run folder in which this process does not find what another has just written there.

    Raises:
        UserError: exit code 4.
    """
    for left in reversed(range(_LOOKS_FOR_TOKEN)):
        try:
            found, problem = file.read_text(encoding="utf-8"), "holds another text than was written"
        except OSError as error:
            found, problem = "", f"cannot be read: {error.strerror}"
        if found == token:
            return
        if left:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    raise UserError(
        f"the run folder {file.parent} is not the one that rank 0 writes to: its {file.name} {problem}.",
        "Name an output_dir that all hosts share, under the same path.",
        key="output_dir",
        exit_code=ExitCode.ENVIRONMENT,
    )


def leave_budget(run: Path, tokens: int) -> None:
    """Leave in a run folder how many tokens a micro-batch may have when the run is started again."""
    with suppress(OSError, UserError), replacing(run / OUT_OF_MEMORY) as stream:
        stream.write(document_text({"tokens_per_microbatch": tokens}))


def left_budget(run: Path) -> int | None:
    """What `leave_budget` left; None where nothing is."""
    try:
        tokens = object_in((run / OUT_OF_MEMORY).read_bytes())["tokens_per_microbatch"]
    except (OSError, ValueError, KeyError):
        return None
    return tokens if isinstance(tokens, int) and tokens > 0 else None


def is_in_use(path: Path) -> bool:
    """Whether a process trains in a run folder at this moment."""
    if (path / _LOCK).is_file():
        try:
            with suppress(OSError):  # a folder that cannot be written to is read, and nobody trains in it
                _locked(path).release()
        except UserError:
            return True
    return False


def document_text(content: Any) -> str:
    """A JSON document as every one of a run is written."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _place(path: Path) -> tuple[int, int]:
    """Which folder it is, whatever its name; (0, 0) where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_dev, status.st_ino


def _append(file: Path, line: bytes) -> None:
    """Write bytes behind a file's last; what a disk took of them before it took no more goes again."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)  # less the umask
    try:
        before, left = os.fstat(descriptor).st_size, line
        try:
            while left:
                left = left[os.write(descriptor, left) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def _row(line: str) -> dict[str, Any] | None:
    """A line of a log; None where it was damaged."""
    try:
        row = parse(line.encode())
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(redacted_values(row), allow_nan=False, ensure_ascii=False) + "\n"


def _locked(path: Path) -> FileLock:
    lock = FileLock(path / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"another process is training in {path}{_owner(path)}.",
            "Wait for it, or give this run another name: name=NEW.",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error
    return lock


def _owner(path: Path) -> str:
    """Who holds the lock, in words; nothing if it does not say so within a second of having it."""
    for _ in range(50):
        try:
            owner = object_in((path / _OWNER).read_bytes())
            if owner["host"] != socket.gethostname() or psutil.pid_exists(owner["pid"]):  # else the holder before it
                return f": pid {owner['pid']} on {owner['host']}, since {owner['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            pass
        time.sleep(0.02)
    return ""


def saved_bytes(path: Path) -> int:
    """What the checkpoints and the model of a run that is resumed take already, of what it needs in all."""
    with disk_faults(f"{path} cannot be read"):
        places = (path / CHECKPOINTS, path / MODEL, path / BASE)
        return sum(file.stat().st_size for place in places for file in place.rglob("*") if file.is_file())


def require_free_space(path: Path, needed: int, purpose: str) -> None:
    """Refuse to go on when the disk cannot hold what is about to be written.

    Args:
        path: the run folder, which need not exist yet.
        purpose: what they are for, as in "two checkpoints and the model".

    Raises:
        UserError: exit code 4, with both numbers.
    """
    with disk_faults(f"there is no telling whether the disk has room for {purpose} at {path}"):
        existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        free = shutil.disk_usage(existing).free
    if free < needed:
        need, has = (f"{size / 1e9:.1f} GB" if needed >= 1e8 else f"{size / 1e6:.1f} MB" for size in (needed, free))
        raise UserError(
            f"the disk is too full for {purpose}: need {need}, free {has}, at {existing}.",
            "Free some space, or set output_dir to another disk.",
            exit_code=ExitCode.ENVIRONMENT,
        )


SEAL = "sha256"
REOPENED = "reopened"
"""Hashes of the recipes with which the run was to be resumed since this run.json was written."""


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A document with the hash of its content as its last entry."""
    return {**content, SEAL: hashlib.sha256(json.dumps(content).encode()).hexdigest()}


def is_as_sealed(data: bytes) -> bool:
    """Whether a file is, byte for byte, a sealed document as a run writes it."""
    try:
        content = json.loads(data)
        seal = content.pop(SEAL)
        # what reads back as it was and is spelt as we spell it has not lost a bit anywhere
        return bool(sealed(content)[SEAL] == seal and document_text(sealed(content)).encode() == data)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return False
