"""The run folder: made once, owned by one process, never silently overwritten; plain files, safe to read meanwhile."""

import json
import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from simpo_cli.errors import ExitCode, UserError

_RUN_FILES = ("run.json", "recipe.yaml", "metrics.jsonl")
EVAL_PAIRS, NOTES = "evals-pairs.jsonl", "notes.jsonl"


def holds_a_run(path: Path) -> bool:
    """Whether a folder is one that `simpo train` made."""
    return any((path / name).is_file() for name in _RUN_FILES)


class RunFolder:
    """An open run folder; close it when the run ends.

    Args:
        path: where it is; made by `create`.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, path: Path, *, fresh: bool) -> "RunFolder":
        """Make the folder, or take an empty one.

        Args:
            path: the recipe's output_dir.
            fresh: set an existing run aside as NAME.old-TIMESTAMP instead of refusing; nothing is deleted.

        Raises:
            UserError: the folder holds a run (without `fresh`), something else, or another process's run; or it cannot
                be made.
        """
        require_usable(path, fresh=fresh)
        try:
            if fresh and holds_a_run(path):
                with _locked(path):
                    path.rename(path.with_name(f"{path.name}.old-{datetime.now():%Y%m%d-%H%M%S}"))
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the run folder {path} cannot be made: {error.strerror}.",
                "Set output_dir to a place that can be written.",
                exit_code=ExitCode.ENVIRONMENT,
            ) from error
        lock = _locked(path)
        return cls(path, lock)

    def close(self) -> None:
        """Let others use the folder."""
        self._lock.release()

    def write_text(self, name: str, text: str) -> None:
        """Write a whole file so that a reader finds the old or the new one, never half of it."""
        target = self.path / name
        temporary = target.with_name(f".{name}.{os.getpid()}")
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON document, whole."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Add one line of JSON."""
        with (self.path / name).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n")


def require_usable(path: Path, *, fresh: bool) -> None:
    """Refuse a path that a new run must not take; looks and changes nothing.

    Raises:
        UserError: as in `RunFolder.create`.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"output_dir {path} is a file.", "Name a folder that does not exist yet.")
    if not path.is_dir() or not any(entry.name != ".lock" for entry in path.iterdir()):
        return
    if not holds_a_run(path):
        raise UserError(
            f"output_dir {path} holds files that are not a run.", "Name a folder that is empty or does not exist yet."
        )
    if not fresh:
        raise UserError(
            f"{path} already holds a run.",
            f"Add --fresh to set it aside as {path.name}.old-TIME and start anew, or name this run: name=NEW.",
        )


def is_in_use(path: Path) -> bool:
    """Whether a process trains in a run folder at this moment."""
    if not (path / ".lock").is_file():
        return False
    try:
        _locked(path).release()
    except UserError:
        return True
    return False


def _locked(path: Path) -> FileLock:
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"another process is training in {path}.",
            "Wait for it, or give this run another name: name=NEW.",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error
    return lock


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
