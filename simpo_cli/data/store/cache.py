"""One side of a recipe's data, training or evaluation, as tokens with the account of every record: made or cached.

Tokens are kept under a key of all that they depend on: the names and bytes of the files, how they are to be read, every
data setting but those that only choose among the pairs, the tokenizer with its templates, and the code that does it:
ours by its source, which nobody can forget to count up, and the libraries by their versions. What is not in the cache
is read once: the digests of the files are taken while they are read.

An entry is a folder of the name of its key: 32 hex digits of how the tokens are made, and 32 of the files' contents. It
is written beside its place, synced and renamed into it. Its manifest holds the account of the records and the size and
sha256 of the files, by which damage is found, a power cut's too. Locks are the kernel's and end with their process: one
for making an entry, so that of several processes one does the work and what a dead one left is known; and one that
every reader holds on the tokens, so that nothing in use is removed.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

import simpo_cli
from simpo_cli.data.file_bytes import open_regular, sha256_of
from simpo_cli.data.hub import hub_identity
from simpo_cli.data.load import PairReader
from simpo_cli.data.sources import HubData, LocalFile, Role, locate
from simpo_cli.data.store.make import Account, make_tokens
from simpo_cli.data.store.pairs import ROWS, TOKENS, StoredPairs
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.files import sync
from simpo_cli.recipe.schema import DataRecipe, DataSource
from simpo_cli.versions import installed_version

MOST_BYTES = 20 * 10**9
"""What the entries of the cache may take together."""
_MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished-"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

Files = Sequence[LocalFile | HubData]
Make = Callable[[Path], tuple[Account, str]]
"""Fills an empty folder with the tokens; gives their account, and the part of the key that is of the contents."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry in hand: the pairs, which keep it from being removed, their account, and the seconds it took to make."""

    key: str
    pairs: StoredPairs
    account: Account
    seconds_made: float


@dataclass(frozen=True, slots=True)
class Origin:
    """Where encoded pairs came from, and what that took.

    They were there (`hit`), or were made and kept (`miss`), or could not be kept (`off`).
    """

    cache: Literal["hit", "miss", "off"]
    key: str  # digest of all that they depend on
    place: str  # the cache's folder
    seconds: float  # from asking to having them
    seconds_made: float  # what making them took, now or then
    remark: str = ""  # what is worth saying beside it, such as that an entry was damaged

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


@dataclass(frozen=True)
class EncodedSource:
    """One side of the data as tokens, with the account of its records."""

    pairs: StoredPairs  # in the order of the sources, each source as often as it is to be repeated
    repeated: int  # how many of the pairs are repeats
    account: Account
    origin: Origin


def encode_source(
    sources: Sequence[DataSource], role: Role, data: DataRecipe, tokenizer: TextTokenizer
) -> EncodedSource:
    """Tokenize one side of the data, or take its tokens from the cache.

    Raises:
        UserError: a file or record is refused, no usable pair is left, or the tokens cannot be written.
    """
    started = time.perf_counter()
    listed = data.sources(sources)
    located = [[found] if isinstance(found := locate(source, role), HubData) else found for source in listed]
    files = [file for of_source in located for file in of_source]

    def make(folder: Path) -> tuple[Account, str]:
        reader = PairReader(listed, role=role, on_bad_record=data.on_bad_record, on_no_signal=data.on_no_signal)
        account = make_tokens(reader, tokenizer, data, folder)
        return account, _contents_key(files, _identities_read(account))

    key = _making_key(listed, located, data, tokenizer)
    entry, origin = fetch(key, lambda: _contents_key(files, {}), make, started)
    pairs, last = entry.pairs[:0], 0
    for source, count in zip(listed, entry.account.pairs_of_source, strict=True):
        first, last = last, last + count
        for _ in range(source.repeat):
            pairs += entry.pairs[first:last]
    return EncodedSource(pairs, len(pairs) - last, entry.account, origin)


def fetch(making_key: str, contents_key: Callable[[], str], make: Make, started: float) -> tuple[Entry, Origin]:
    """The entry of a key. Where the cache cannot be written, it is made for this process alone.

    The contents are only asked for where an entry is there that was made in the same way: else there is nothing to
    find, and the files need not be read for their digests before they are read for their pairs.

    Args:
        making_key: 32 hex digits of all that the entry depends on but the contents of the files.
        contents_key: gives the other 32.
        started: when the pairs were asked for, by time.perf_counter.

    Raises:
        UserError: the disk is full or fails (exit code 4), or what `make` raises.
    """
    parent = cache_folder()
    folder = None if parent is None else parent / "tokens"

    def origin(cache: Literal["hit", "miss", "off"], entry: Entry, remark: str = "") -> Origin:
        return Origin(cache, entry.key, str(parent), time.perf_counter() - started, entry.seconds_made, remark)

    def find() -> tuple[Entry | None, str]:
        if folder is None or _why_foreign(folder) or not any(folder.glob(f"{making_key}*/")):
            return None, ""
        return _read_entry(folder / (making_key + contents_key()))

    entry, remark = find()
    if entry is not None:
        return entry, origin("hit", entry)
    try:
        why_off = _why_off(folder)
        if folder is None or why_off:
            entry = _make_for_once(making_key, make)
            return entry, origin("off", entry, why_off)
        with _sole_maker(folder, making_key):
            entry, _ = find()  # another process may have made it meanwhile
            if entry is not None:
                return entry, origin("hit", entry)
            entry = _make_entry(folder, making_key, make)
        prune(folder, MOST_BYTES)
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
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if why := _why_foreign(folder):
            return why
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        return f"{folder} cannot be written: {error.strerror}; SIMPO_CACHE names another"


# Entries


def _read_entry(folder: Path) -> tuple[Entry | None, str]:
    """The entry in a folder, verified and marked as used; None if there is none, with a remark if it is damaged."""
    try:
        if not folder.is_dir():
            return None, ""
        pairs = StoredPairs.open(folder)
        _lock_while_read(pairs, fcntl.LOCK_NB)
        entry = _verified(folder, pairs)
    except BlockingIOError:  # it is being removed
        return None, ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"the cached tokens were damaged: {error}"
    with suppress(OSError):  # a cache that can be read and not written
        os.utime(folder / _MANIFEST)
    return entry, ""


def _verified(folder: Path, pairs: StoredPairs) -> Entry:
    """An entry whose files all are what was written; ValueError and its like where they are not."""
    manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text(encoding="ascii"))
    content = manifest["content"]
    if _digest(content) != manifest["sha256"]:
        raise ValueError(f"{_MANIFEST} is not what was written")
    for name, written in content["files"].items():
        if (found := _identity(folder / name)) != written:
            raise ValueError(f"{name} has {found['size']:,} bytes of digest {found['sha256'][:12]}, not what it had")
    return Entry(folder.name, pairs, Account.from_json(content["account"]), float(content["seconds_made"]))


def _make_entry(parent: Path, making_key: str, make: Make) -> Entry:
    """Fill a folder that is whole or absent, in the place of an entry that is there; OSError leaves nothing of it."""
    started = time.perf_counter()
    place = Path(tempfile.mkdtemp(prefix=f"{_UNFINISHED}{making_key[:2]}-", dir=parent))
    try:
        account, contents_key = make(place)
        content: dict[str, Any] = {
            "seconds_made": time.perf_counter() - started,
            "files": {name: _identity(place / name) for name in (TOKENS, ROWS)},
            "account": account.as_json(),
        }
        manifest = {"sha256": _digest(content), "content": content}
        (place / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="ascii")
        for path in (place / TOKENS, place / ROWS, place / _MANIFEST, place):
            sync(path)
        pairs = StoredPairs.open(place)
        _lock_while_read(pairs)
        folder = parent / (making_key + contents_key)
        _remove(folder)
        try:
            os.rename(place, folder)
        except OSError as error:  # where there are no locks, another process may have been faster; its entry is as good
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        sync(parent)
    finally:
        shutil.rmtree(place, ignore_errors=True)  # not there any more when all went well
    return Entry(folder.name, pairs, account, content["seconds_made"])


def _make_for_once(making_key: str, make: Make) -> Entry:
    """An entry in a temporary folder, whose names are gone as soon as its files are open."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="simpo-") as place:
        account, contents_key = make(Path(place))
        pairs = StoredPairs.open(Path(place))
    return Entry(making_key + contents_key, pairs, account, time.perf_counter() - started)


def _identity(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


# Locks, and what is removed


def prune(parent: Path, most_bytes: int) -> None:
    """Remove what dead makers left, and entries, the least recently used first, until the rest fits the limit."""
    for place in parent.glob(f"{_UNFINISHED}*"):
        lock = _lock_of_makers(parent, place.name.removeprefix(_UNFINISHED))
        with suppress(OSError, Timeout, NotImplementedError), lock.acquire(timeout=0):
            shutil.rmtree(place, ignore_errors=True)
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
            with (entry / TOKENS).open("r+b") as tokens:  # without writing NFS gives no lock of one's own
                fcntl.flock(tokens, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(entry)
            total -= size


def _remove(folder: Path) -> None:
    """Take a folder's name away at once, then its files, so that others find all of it or nothing."""
    doomed = tempfile.mkdtemp(prefix=f"{_UNFINISHED}{folder.name[:2]}-", dir=folder.parent)
    with suppress(FileNotFoundError):
        os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _lock_of_makers(parent: Path, making_key: str) -> FileLock:
    """All entries share 256 locks, so that their files do not pile up; those of one lock only wait for one another."""
    return FileLock(parent / f".lock-{making_key[:2]}", mode=0o600, fallback_to_soft=False)


@contextmanager
def _sole_maker(parent: Path, making_key: str) -> Iterator[None]:
    """Keep other processes from making the same entry meanwhile: they wait, and then find it.

    Where the file system knows no locks, two processes may do the same work, and one result stays.
    """
    lock = _lock_of_makers(parent, making_key)
    with _where_locks_are():
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock_while_read(pairs: StoredPairs, flags: int = 0) -> None:
    with _where_locks_are():
        fcntl.flock(pairs.descriptor, fcntl.LOCK_SH | flags)


@contextmanager
def _where_locks_are() -> Iterator[None]:
    try:
        yield
    except NotImplementedError:  # FileLock's word for the same
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


# The key

_LIBRARIES = ("tokenizers", "jinja2", "numpy", "pyarrow", "datasets")
_OF_THE_READING = ("split", "columns", "labels", "direction", "max_pairs")
_NOT_OF_THE_TOKENS = (
    *("train", "eval", "holdout"),
    *("columns", "labels", "direction"),  # each source has taken them over
    "chat_template",  # the template itself is part of the tokenizer
)


def _making_key(
    sources: Sequence[DataSource], located: Sequence[Files], data: DataRecipe, tokenizer: TextTokenizer
) -> str:
    """32 hex digits of all that tokens depend on but the bytes of the files; how often a source is repeated plays none.

    Raises UserError where a file is missing, or may not be read.
    """
    parts = {
        "sources": [
            {
                "files": [(file.name, _size(file)) for file in files],
                **{name: getattr(source, name) for name in _OF_THE_READING},
            }
            for source, files in zip(sources, located, strict=True)
        ],
        "settings": {name: value for name, value in asdict(data).items() if name not in _NOT_OF_THE_TOKENS},
        "tokenizer": tokenizer.identity,
        "code": _code_identity(),
    }
    return _digest(parts)[:32]


def _contents_key(files: Files, known: Mapping[str, str]) -> str:
    """32 hex digits of what tells the contents of files, in their order; those not `known` by name are read for it."""
    return _digest([(file.name, known.get(file.name) or _content_identity(file)) for file in files])[:32]


def _identities_read(account: Account) -> dict[str, str]:
    """What tells the content of each file that was read; one that was read twice has to be the same."""
    identities: dict[str, str] = {}
    for name, identity, _ in account.files:
        if identities.setdefault(name, identity) != identity:
            raise UserError("was changed while it was read.", "Run again when nothing writes to it.", where=name)
    return identities


def _size(file: LocalFile | HubData) -> int | None:
    if isinstance(file, HubData):
        return None
    with open_regular(file.path, file.name) as stream:
        return os.fstat(stream.fileno()).st_size


def _content_identity(file: LocalFile | HubData) -> str:
    if isinstance(file, HubData):
        return hub_identity(file.name, file.split)
    with open_regular(file.path, file.name) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def _code_identity() -> str:
    """The code that makes pairs and tokens of files, and what it rests on."""
    root = Path(simpo_cli.__file__).parent
    sources = {str(file.relative_to(root)): file.read_text("utf-8") for file in sorted((root / "data").rglob("*.py"))}
    libraries = {name: installed_version(name) for name in _LIBRARIES}
    return _digest([simpo_cli.__version__, sources, libraries, sys.version_info[:2]])


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
