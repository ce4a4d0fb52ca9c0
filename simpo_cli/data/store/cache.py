"""The cache of encoded pairs: its entries are whole or absent, verified when read, and removed when nobody reads.

An entry is a folder of the name of its key. It is written beside its place, synced and renamed into it, and carries the
size and sha256 of each of its files, by which damage is found, a power cut's too. Locks are the kernel's and end with
their process: one for making an entry, so that of several processes one does the work; one that every reader holds on
the tokens, so that nothing in use is removed; and one of every writer in its folder, so that what a dead one left is.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from simpo_cli.data.store.pairs import ACCOUNT, REFUSED, ROWS, TOKENS, Account, StoredPairs
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.files import sync

_MANIFEST = "manifest.json"
_FILES = (TOKENS, ROWS, ACCOUNT, REFUSED)
_UNFINISHED = ".making-"
_LOCK = ".lock"  # opened for writing, without which NFS gives no lock of one's own
_YOUNG = 60.0  # seconds in which the maker of a folder has surely locked it
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

Make = Callable[[Path], Account]  # fills an empty folder with the tokens and their account


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry in hand: the pairs, which keep it from being removed, their account, and the seconds it took to make."""

    pairs: StoredPairs
    account: Account
    seconds_made: float


class _DamagedError(Exception):
    """An entry is there and is not what was written; the message says how."""


def read_entry(folder: Path) -> tuple[Entry | None, str]:
    """The entry in a folder, verified and marked as used; None if there is none, with a remark if it is damaged."""
    try:
        if not folder.is_dir():
            return None, ""
        pairs = StoredPairs.open(folder)
        _lock(pairs.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        manifest = _verified(folder)
        entry = Entry(pairs, Account.read(folder), float(manifest["seconds_made"]))
    except BlockingIOError:  # it is being removed
        return None, ""
    except (OSError, ValueError, KeyError, TypeError, _DamagedError) as error:
        return None, f"the cached tokens were damaged: {error}"
    with suppress(OSError):  # a cache that can be read and not written
        os.utime(folder / _MANIFEST)
    return entry, ""


def _verified(folder: Path) -> dict[str, Any]:
    """The manifest of an entry whose files all are what it says."""
    manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text(encoding="ascii"))
    for name in _FILES:
        written, found = manifest["files"][name], _identity(folder / name)
        if found != written:
            raise _DamagedError(f"{name} has {found['size']:,} bytes of digest {found['sha256'][:12]}, not what it had")
    return manifest


def _identity(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def make_entry(folder: Path, make: Make) -> Entry:
    """Fill a folder that is whole or absent; an entry that is there already is replaced.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    started = time.perf_counter()
    place = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder.parent))
    lock = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(lock, fcntl.LOCK_EX)
        account = make(place)
        seconds_made = time.perf_counter() - started
        manifest = {"seconds_made": seconds_made, "files": {name: _identity(place / name) for name in _FILES}}
        (place / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="ascii")
        for path in (*(place / name for name in (*_FILES, _MANIFEST)), place):
            sync(path)
        pairs = StoredPairs.open(place)
        _lock(pairs.descriptor, fcntl.LOCK_SH)
        _remove(folder)
        try:
            os.rename(place, folder)
        except OSError as error:  # where there are no locks, another process may have been faster; its entry is as good
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        sync(folder.parent)
    finally:
        shutil.rmtree(place, ignore_errors=True)  # not there any more when all went well
        os.close(lock)
    return Entry(pairs, account, seconds_made)


def make_for_once(make: Make) -> Entry:
    """An entry in a temporary folder, whose names are gone as soon as its files are open."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="simpo-") as place:
        account = make(Path(place))
        return Entry(StoredPairs.open(Path(place)), account, time.perf_counter() - started)


def prune(parent: Path, most_bytes: int) -> None:
    """Remove what dead writers left, and entries, the least recently used first, until the rest fits the limit."""
    for place in parent.glob(f"{_UNFINISHED}*"):
        with suppress(OSError):
            if time.time() - place.stat().st_mtime > _YOUNG:
                _remove_unless_locked(place, place / _LOCK)
    entries = []
    for manifest in parent.glob(f"*/{_MANIFEST}"):
        with suppress(OSError):
            size = sum(file.stat().st_size for file in manifest.parent.iterdir())
            entries.append((manifest.stat().st_mtime, manifest.parent, size))
    total = sum(size for _, _, size in entries)
    for _, entry, size in sorted(entries):
        if total <= most_bytes:
            break
        with suppress(OSError):  # in use, or removed by another process
            _remove_unless_locked(entry, entry / TOKENS)
            total -= size


def _remove_unless_locked(folder: Path, locked: Path) -> None:
    descriptor = os.open(locked, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(folder)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Take a folder's name away at once, then its files, so that others find all of it or nothing."""
    doomed = tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder.parent)
    with suppress(FileNotFoundError):
        os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """Keep other processes from making the same entry meanwhile: they wait, and then find it.

    All entries share 256 locks, so that their files do not pile up; entries of one lock only wait for one another.
    """
    descriptor = os.open(folder.parent / f".lock-{folder.name[:2]}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> None:
    """Lock where the file system can: elsewhere two processes may do the same work, and one result stays."""
    try:
        fcntl.flock(descriptor, kind)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


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
