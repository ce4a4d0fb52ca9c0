"""Encoded pairs from the cache, or made and kept there; which of the two it was, and what it took."""

import errno
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simpo_cli.data.store.entries import Entry, Make, make_entry, make_for_once, making, prune, read_entry
from simpo_cli.errors import ExitCode, UserError

MOST_BYTES = 20 * 10**9
"""What the entries of the cache may take together."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where encoded pairs came from, and what that took.

    Attributes:
        cache: `hit` when they were there, `miss` when they were made and kept, `off` when they could not be kept.
        key: digest of all that they depend on.
        place: the cache's folder.
        seconds: from asking to having them.
        seconds_made: what making them took, now or then.
        remark: what is worth saying beside it, such as that an entry was damaged; often empty.
    """

    cache: Literal["hit", "miss", "off"]
    key: str
    place: str
    seconds: float
    seconds_made: float
    remark: str = ""

    @property
    def seconds_saved(self) -> float:
        """How much sooner the pairs were there than by making them; 0 unless it was a hit."""
        return max(0.0, self.seconds_made - self.seconds) if self.cache == "hit" else 0.0


def cache_folder() -> Path | None:
    """$SIMPO_CACHE, or `simpo` in $XDG_CACHE_HOME, or ~/.cache/simpo; None where there is no home."""
    if named := os.environ.get("SIMPO_CACHE"):
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification has such a path ignored
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base, "simpo") if os.path.isabs(base) else None


def fetch(key: str, make: Make, started: float) -> tuple[Entry, Origin]:
    """The entry of a key. Where the cache cannot be written, it is made for this process alone.

    Args:
        key: digest of all that the entry depends on.
        make: fills a folder with tokens and account.
        started: when the pairs were asked for, by time.perf_counter.

    Raises:
        UserError: the disk is full or fails (exit code 4), or what `make` raises.
    """
    parent = cache_folder()
    folder = None if parent is None else parent / "tokens" / key
    is_ours = folder is not None and not _why_foreign(folder.parent)
    entry, remark = read_entry(folder) if folder is not None and is_ours else (None, "")

    def origin(cache: Literal["hit", "miss", "off"], entry: Entry, remark: str = "") -> Origin:
        return Origin(cache, key, str(parent), time.perf_counter() - started, entry.seconds_made, remark)

    if entry is not None:
        return entry, origin("hit", entry)
    try:
        why_off = _why_off(folder)
        if folder is None or why_off:
            entry = make_for_once(make)
            return entry, origin("off", entry, why_off)
        with making(folder):
            entry, _ = read_entry(folder)  # another process may have made it meanwhile
            if entry is not None:
                return entry, origin("hit", entry)
            entry = make_entry(folder, make)
        prune(folder.parent, MOST_BYTES)
    except OSError as error:
        raise UserError(
            f"the tokens of the pairs cannot be written: {error.strerror or error}.",
            "Free some space, or set SIMPO_CACHE to a folder on another disk.",
            where=str(parent),
            exit_code=ExitCode.ENVIRONMENT,
        ) from error
    return entry, origin("miss", entry, remark)


def _why_foreign(folder: Path) -> str:
    """Why somebody else could have put tokens into the cache, or could take them out; empty when nobody can.

    An entry vouches for itself, not for who wrote it.
    """
    try:
        status = folder.stat()
    except OSError:
        return ""  # not there yet
    if status.st_uid not in (os.geteuid(), 0):
        return f"{folder} belongs to another user; SIMPO_CACHE names another"
    if status.st_mode & 0o022:
        return f"{folder} can be written by other users (chmod go-w mends it); SIMPO_CACHE names another"
    return ""


def _why_off(folder: Path | None) -> str:
    """Why an entry cannot be kept; empty when it can."""
    if folder is None:
        return "there is no home folder for a cache; SIMPO_CACHE names one"
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if why := _why_foreign(folder.parent):
            return why
        with tempfile.TemporaryFile(dir=folder.parent):
            return ""
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        return f"{folder.parent} cannot be written: {error.strerror}; SIMPO_CACHE names another"
