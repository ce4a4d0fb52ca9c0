"""The run folder: made once, owned by one process, never silently overwritten; plain files, safe to read meanwhile."""

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
from simpo_cli.train.checkpoint import sync

METRICS, EVALS = "metrics.jsonl", "evals.jsonl"
EVAL_PAIRS, EVAL_SAMPLES, NOTES = "evals-pairs.jsonl", "evals-samples.jsonl", "notes.jsonl"

_RUN_FILES = ("run.json", "recipe.yaml", METRICS)
_LOCK, _OWNER = ".lock", ".owner"
_UNFINISHED = re.compile(r"\.[\w.]+\.\d+")  # .run.json.4711, on its way to be run.json


def holds_a_run(path: Path) -> bool:
    """Whether a folder is one that `simpo train` made."""
    return any((path / name).is_file() for name in _RUN_FILES)


class RunFolder:
    """An open run folder; close it when the run ends.

    Args:
        path: where it is; made by `create`.
        lock: held.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock
        self.lines: Counter[str] = Counter()
        """Lines that each log holds, as far as this process wrote or kept them."""

    @classmethod
    def create(cls, path: Path, *, fresh: bool = False, resume: bool = False) -> "RunFolder":
        """Make the folder, or take an empty one, or with `resume` one that holds a run.

        Args:
            path: the recipe's output_dir.
            fresh: set an existing run aside as NAME.old-TIMESTAMP instead of refusing; nothing is deleted.
            resume: take an existing run; what a process that died in it left unfinished is removed.

        Raises:
            UserError: the folder holds a run (without `fresh` and `resume`), something else, or another process's run;
                or it cannot be made.
        """
        require_usable(path, fresh=fresh, resume=resume)
        try:
            if fresh and holds_a_run(path):
                lock = _locked(path)
                path.rename(path.with_name(f"{path.name}.old-{datetime.now():%Y%m%d-%H%M%S}"))
                lock.release()
            path.mkdir(parents=True, exist_ok=True)
            folder = cls(path, _locked(path))
            require_usable(path, resume=resume)  # another process may have trained here while this one looked
        except OSError as error:
            raise UserError(
                f"the run folder {path} cannot be made: {error.strerror}.",
                "Set output_dir to a place that can be written.",
                exit_code=ExitCode.ENVIRONMENT,
            ) from error
        for entry in path.iterdir():
            if _UNFINISHED.fullmatch(entry.name):
                entry.unlink()
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        folder.write_json(_OWNER, owner)
        return folder

    def close(self) -> None:
        """Let others use the folder."""
        self._lock.release()

    def write_text(self, name: str, text: str) -> None:
        """Write a whole file so that a reader finds the old or the new one, never half of it.

        Raises:
            UserError: the disk did not take it (exit code 4); the old file is as it was.
        """
        target = self.path / name
        temporary = target.with_name(f".{name.lstrip('.')}.{os.getpid()}")
        with _writing(target):
            try:
                with temporary.open("w", encoding="utf-8") as stream:
                    stream.write(text)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temporary, target)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink()
                raise

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON document, whole."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write a file of JSON lines, whole."""
        self.write_text(name, "".join(_line(row) for row in rows))

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Add one line of JSON to a log."""
        line = _line(row)
        with _writing(self.path / name), (self.path / name).open("a", encoding="utf-8") as stream:
            stream.write(line)
        self.lines[name] += 1

    def sync_logs(self) -> None:
        """Wait until the disk has every line of the logs."""
        for name in (METRICS, EVALS):
            if (self.path / name).is_file():
                with _writing(self.path / name):
                    sync(self.path / name)

    def cut_back(self, name: str, lines: int) -> list[dict[str, Any]]:
        """Keep the first lines of a log and forget the others, whole or not, by an atomic rewrite.

        Returns:
            The rows that are left: fewer than `lines` when somebody else has cut the file.
        """
        file = self.path / name
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        kept = text.split("\n")[:-1][:lines]  # behind the last line end there is nothing, or half a line
        if text != "".join(f"{line}\n" for line in kept):
            self.write_text(name, "".join(f"{line}\n" for line in kept))
        self.lines[name] = len(kept)
        return [json.loads(line) for line in kept]


def require_usable(path: Path, *, fresh: bool = False, resume: bool = False) -> None:
    """Refuse a path that a run must not take; looks and changes nothing.

    Raises:
        UserError: as in `RunFolder.create`.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"output_dir {path} is a file.", "Name a folder that does not exist yet.")
    if not path.is_dir() or all(_is_of_no_run(entry.name) for entry in path.iterdir()):
        return
    if not holds_a_run(path):
        raise UserError(
            f"output_dir {path} holds files that are not a run.", "Name a folder that is empty or does not exist yet."
        )
    if not fresh and not resume:
        raise UserError(
            f"{path} already holds a run.",
            f"Add --resume to go on with it, or --fresh to set it aside as {path.name}.old-TIME and start anew, or "
            "name this run: name=NEW.",
        )


def is_in_use(path: Path) -> bool:
    """Whether a process trains in a run folder at this moment."""
    if not (path / _LOCK).is_file():
        return False
    try:
        _locked(path).release()
    except UserError:
        return True
    return False


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n"


def _is_of_no_run(name: str) -> bool:
    """What a process leaves that is killed before its run has begun."""
    return name in (_LOCK, _OWNER) or _UNFINISHED.fullmatch(name) is not None


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
            owner = json.loads((path / _OWNER).read_text(encoding="utf-8"))
            if owner["host"] != socket.gethostname() or psutil.pid_exists(owner["pid"]):  # else the holder before it
                return f": pid {owner['pid']} on {owner['host']}, since {owner['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            pass
        time.sleep(0.02)
    return ""


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{file} cannot be written: {error.strerror}.",
            "Free some space or mend the disk, and run the same command with --resume.",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error


def require_free_space(path: Path, needed: int, purpose: str) -> None:
    """Refuse to go on when the disk cannot hold what is about to be written.

    Args:
        path: the run folder, which need not exist yet.
        needed: bytes.
        purpose: what they are for, as in "two checkpoints and the model".

    Raises:
        UserError: exit code 4, with both numbers.
    """
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"the disk is too full for {purpose}: need {needed / 1e9:.1f} GB, free {free / 1e9:.1f} GB, at {existing}.",
            "Free some space, or set output_dir to another disk.",
            exit_code=ExitCode.ENVIRONMENT,
        )
