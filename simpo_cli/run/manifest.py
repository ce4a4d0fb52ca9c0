"""Reading checkpoints: a manifest that vouches for itself, and files that are hashed while they are read.

Nothing of a checkpoint is believed: not its name, not its manifest, not its files. Its manifest must be, byte for byte,
what we write for its content; the folder must hold the files of the manifest and no others; and whoever reads a file
learns at its end whether the bytes were those that were saved.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simpo_cli.run.folder import SEAL, document_text, sealed

MANIFEST = "manifest.json"

_MOST_MANIFEST_BYTES = 16 * 2**20
_READ = 2**22  # one piece is hashed while the next is read
_FEWEST = 2**22  # bytes that are worth the way to the thread and back, also on a machine whose processors are busy


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the manifest says of a file: bytes, and the hex digest of their sha256."""

    size: int
    sha256: str


class HashBeside:
    """The sha256 of bytes that come piece by piece, taken while the caller reads or writes.

    hashlib and the calls of `os` leave the interpreter to other threads, so that a file takes the longer of the two
    times and not their sum. One piece is on its way at most, and the calls of `os` stay in the caller's thread: each of
    them fails where it is made.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._size = 0
        self._thread = ThreadPoolExecutor(1, "sha256")  # starts with the first piece that is worth it
        self._latest: Future[None] | None = None

    def update(self, piece: bytes | memoryview) -> None:
        """Begin with the next piece, which must stay as it is until `wait` or another `update` has returned."""
        self.wait()
        self._size += len(piece)
        if len(piece) < _FEWEST:
            self._hash.update(piece)
        else:
            self._latest = self._thread.submit(self._hash.update, piece)

    def wait(self) -> None:
        """Wait until all pieces are hashed."""
        if self._latest is not None:
            self._latest.result()
            self._latest = None

    def facts(self) -> FileFacts:
        """What has come so far."""
        self.wait()
        return FileFacts(self._size, self._hash.hexdigest())

    def close(self) -> None:
        """End the thread, once it is done with its piece."""
        self._thread.shutdown()


class DamagedCheckpointError(Exception):
    """A checkpoint that is not what was saved.

    Args:
        reason: what is wrong, such as `weights.safetensors is cut short`.
    """

    def __init__(self, folder: Path, reason: str) -> None:
        self.folder = folder
        self.reason = reason
        super().__init__(f"{folder.name}: {reason}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of manifest.json."""

    step: int  # optimizer steps done
    sequence: int  # number of the save, higher than that of every checkpoint that was there before it
    facts: Mapping[str, Any]  # what else it says, such as hashes of recipe, data and plan; JSON values
    files: Mapping[str, FileFacts]  # of the checkpoint, but for the manifest

    def as_bytes(self) -> bytes:
        """The file, with the sha256 of its own content as its last entry."""
        content = {
            "schema_version": 1,
            "step": self.step,
            "sequence": self.sequence,
            **self.facts,
            "files": {name: asdict(facts) for name, facts in self.files.items()},
        }
        return document_text(sealed(content)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Read a manifest.

        Raises:
            ValueError: it is not what `as_bytes` wrote.
        """
        content = json.loads(data)
        if not isinstance(content, dict) or not {"step", "sequence", "files"} <= content.keys():
            raise ValueError("lacks what a manifest says")
        own = {"schema_version", "step", "sequence", "files", SEAL}
        try:
            manifest = cls(
                int(content["step"]),
                int(content["sequence"]),
                {key: value for key, value in content.items() if key not in own},
                {name: FileFacts(**facts) for name, facts in content["files"].items()},
            )
        except (TypeError, AttributeError) as error:
            raise ValueError("lacks what a manifest says") from error
        if manifest.as_bytes() != data:
            raise ValueError("was changed after it was written")
        return manifest


class HashedReader:
    """A file that is hashed while it is read."""

    def __init__(self, descriptor: int, hashing: HashBeside) -> None:
        self._descriptor, self._hashing = descriptor, hashing

    def readinto(self, buffer: memoryview) -> None:
        """Fill a buffer of bytes.

        Raises:
            EOFError: the file has ended before.
        """
        while buffer:
            got = os.readv(self._descriptor, [buffer[:_READ]])
            if got == 0:
                raise EOFError
            self._hashing.update(buffer[:got])
            buffer = buffer[got:]
        self._hashing.wait()

    def read(self, size: int) -> bytes:
        """The next `size` bytes; EOFError where there are fewer."""
        data = bytearray(size)
        self.readinto(memoryview(data))
        return bytes(data)

    def drain(self) -> FileFacts:
        """Read what is left, and return what the whole file was."""
        while data := os.read(self._descriptor, _READ):
            self._hashing.update(data)
        return self._hashing.facts()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose manifest and list of files are in order; their bytes are looked at when they are read."""

    folder: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step

    def parts(self, name: str) -> list[str]:
        """The files that hold what a run of one process saves as `name`: that one, or one of each rank."""
        ranks = range(len(self.manifest.files))
        return [part for rank in ranks if (part := part_name(name, rank)) in self.manifest.files] or [name]

    @contextmanager
    def open(self, name: str) -> Iterator[HashedReader]:
        """Read a file; leaving the block checks its size and hash, whatever was read of it.

        Raises:
            DamagedCheckpointError: the bytes are not those that were saved, or cannot be read.
        """
        try:
            descriptor = os.open(self.folder / name, os.O_RDONLY)
            try:
                failure: Exception | None = None
                with closing(HashBeside()) as hashing:
                    reader = HashedReader(descriptor, hashing)
                    try:
                        yield reader
                    except Exception as error:  # what a damaged file makes its reader raise is no news; its hash is
                        failure = error
                    found = reader.drain()
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DamagedCheckpointError(self.folder, f"{name} cannot be read: {error.strerror}") from error
        if found != self.manifest.files[name]:
            reason = _what_differs(name, found, self.manifest.files[name])
            raise DamagedCheckpointError(self.folder, reason) from failure
        if failure is not None:
            raise failure

    @contextmanager
    def open_parts(self, name: str) -> Iterator[list[HashedReader]]:
        """Read all parts of a file, each as in `open`."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.open(part)) for part in self.parts(name)]

    def verify(self) -> None:
        """Read every file to its end.

        Raises:
            DamagedCheckpointError: as in `open`.
        """
        for name in self.manifest.files:
            with self.open(name):
                pass

    def read_json(self, name: str) -> Any:
        """The content of a JSON file, checked as in `open`."""
        with self.open(name) as reader:
            return json.loads(reader.read(self.manifest.files[name].size))


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's manifest, with which the folder has to agree, sizes included, or it is a damaged one."""
    if folder.is_symlink():
        raise DamagedCheckpointError(folder, "it is a link, and what it leads to is not of this run")
    manifest = _read_manifest(folder)
    if folder.name != folder_name(manifest.step):
        raise DamagedCheckpointError(folder, f"its manifest is that of step {manifest.step}")
    present = {entry.name: entry for entry in os.scandir(folder) if entry.name != MANIFEST}
    for name, facts in manifest.files.items():
        entry = present.pop(name, None)
        if entry is None or not entry.is_file(follow_symlinks=False):
            raise DamagedCheckpointError(folder, f"{name} is missing")
        size = entry.stat(follow_symlinks=False).st_size
        if size != facts.size:
            raise DamagedCheckpointError(folder, _what_differs(name, FileFacts(size, ""), facts))
    if present:
        raise DamagedCheckpointError(folder, f"{min(present)} does not belong to it")
    return Checkpoint(folder, manifest)


def find_checkpoints(parent: Path) -> tuple[list[Checkpoint], list[DamagedCheckpointError]]:
    """The checkpoints of a run, the one saved last first; and those that are damaged, so far as one sees from outside.

    Args:
        parent: the folder of the checkpoints, which need not exist.
    """
    whole: list[Checkpoint] = []
    damaged: list[DamagedCheckpointError] = []
    for folder in sorted(parent.glob("step-*")):
        try:
            whole.append(open_checkpoint(folder))
        except DamagedCheckpointError as error:
            damaged.append(error)
        except OSError as error:
            damaged.append(DamagedCheckpointError(folder, f"cannot be read: {error.strerror}"))
    return sorted(whole, key=lambda checkpoint: -checkpoint.manifest.sequence), damaged


def folder_name(step: int) -> str:
    """Name of the checkpoint taken after `step` steps."""
    return f"step-{step:08d}"


def part_name(name: str, rank: int) -> str:
    """Name of the file in which one of several ranks saves its part, such as weights-r1.safetensors."""
    stem, kind = name.split(".")
    return f"{stem}-r{rank}.{kind}"


def highest_sequence(parent: Path) -> int:
    """The highest number that a save of this run can have had; 0 before the first.

    Damaged checkpoints count where their manifest can still be read at all, so that a new one always sorts above them.
    """
    numbers = [0]
    for file in parent.glob(f"step-*/{MANIFEST}"):
        try:
            found = re.search(rb'"sequence": (\d{1,15})\b', file.read_bytes())
        except OSError:
            continue
        numbers.append(int(found[1]) if found else 0)
    return max(numbers)


def _read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    try:
        status = file.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise DamagedCheckpointError(folder, f"{MANIFEST} is no file of its own")
        if status.st_size > _MOST_MANIFEST_BYTES:
            raise DamagedCheckpointError(folder, f"{MANIFEST} is longer than it was")
        return Manifest.from_bytes(file.read_bytes())
    except FileNotFoundError as error:
        raise DamagedCheckpointError(folder, f"it has no {MANIFEST}, so it was not finished") from error
    except OSError as error:
        raise DamagedCheckpointError(folder, f"{MANIFEST} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or not ours
        raise DamagedCheckpointError(folder, f"{MANIFEST} is not what was written") from error


def _what_differs(name: str, found: FileFacts, saved: FileFacts) -> str:
    if found.size != saved.size:
        return f"{name} is {'cut short' if found.size < saved.size else 'longer than it was'}"
    return f"{name} holds other bytes than were saved"
