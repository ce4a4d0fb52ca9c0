"""A file as a stream of bytes: uncompressed on the way, hashed on the way, and never a hang or a bomb.

Only regular files are opened. The sha256 is of the bytes on disk, taken while they are read, so what was hashed is what
was used; a file that changes under the reader is refused.
"""

import errno
import hashlib
import os
import stat
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.versions import install_command

_READ = 2**20
_ZSTD_READ = 1024  # a block of 4 bytes may become 128 KiB, so one read becomes at most 32 MiB
BOMB_BYTES = 64 * 2**20
BOMB_RATIO = 100  # text packs 3 to 15 times; long runs of equal records may reach 100 in small files only

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def open_regular(path: str, name: str) -> BufferedReader:
    """Open a file, which messages call `name`, for reading, if it is a regular one.

    Raises:
        UserError: it is missing, a folder, a pipe or a device, or may not be read.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = next((word for test, word in _KINDS if test(mode)), "not a regular file")
            raise UserError(f"is {kind}.", "Write the data to a file first, and name that.", where=name)
        # a pipe put in the file's place between the two calls must not block
        return os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    except OSError as error:
        raise _unreadable(error, name) from error


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def _unreadable(error: OSError, name: str) -> UserError:
    match error.errno:
        case errno.ELOOP:
            problem, fix = "is a symbolic link that leads back to itself.", "Mend the link, or name the file itself."
        case errno.ENOENT:
            problem, fix = "does not exist.", "Check the path."
        case errno.EACCES | errno.EPERM:
            problem, fix = "may not be read: permission denied.", "Give yourself read permission (chmod u+r)."
        case _:
            problem, fix = f"cannot be read: {error.strerror or error}.", "Check the path and the disk."
    return UserError(problem, fix, where=name)


@dataclass
class FileReceipt:
    """What is known of a source once it has been read.

    Attributes:
        path: as the person named it.
        identity: sha256 of the file's bytes, or the commit of a hub data set.
        size: bytes on disk; 0 for the hub.
        warnings: things worth telling that stop nothing, with their number.
    """

    path: str
    identity: str = ""
    size: int = 0
    warnings: Counter[str] = field(default_factory=Counter)


class ByteSource:
    """The uncompressed bytes of one file, once.

    Args:
        path: the file.
        receipt: gets the sha256 and the size when the file has been read to its end, and the warnings.
    """

    def __init__(self, path: str, receipt: FileReceipt) -> None:
        self._path, self._receipt = path, receipt
        self._name = receipt.path
        self._file = open_regular(path, self._name)
        self._before = os.fstat(self._file.fileno())
        self._hash = hashlib.sha256()
        self._read_bytes = 0
        self._head = self._read(_READ)
        self.compression = self._compression()
        unpack = {"gz": self._gunzip, "zst": self._unzstd}.get(self.compression or "")
        self._chunks = self._plain() if unpack is None else self._guarded(unpack())
        self.start = next(self._chunks, b"")
        """The first piece of content, for a look at what the file is; `chunks` gives it again."""

    def _compression(self) -> str | None:
        if self._head.startswith(GZIP_MAGIC):
            return "gz"
        if self._head.startswith(ZSTD_MAGIC):
            return "zst"
        suffix = os.path.splitext(self._name)[1].lower()
        if suffix in (".gz", ".zst", ".zstd") and self._head:
            self._receipt.warnings[f"{self._name} is named {suffix} and is not compressed"] += 1
        return None

    def _read(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise _unreadable(error, self._name) from error
        self._hash.update(data)
        self._read_bytes += len(data)
        return data

    def _plain(self) -> Iterator[bytes]:
        piece = self._head
        while piece:
            yield piece
            piece = self._read(_READ)

    def _gunzip(self) -> Iterator[bytes]:
        data = self._head
        while data:
            member = zlib.decompressobj(wbits=31)
            while not member.eof:
                try:
                    piece = member.decompress(data, _READ)
                except zlib.error as error:
                    raise self._damaged("gzip file", str(error)) from error
                if not (data or piece or member.eof):
                    raise self._damaged("gzip file", "it ends in the middle")
                if piece:
                    yield piece
                data = member.unconsumed_tail or (b"" if member.eof else self._read(_READ))
            data = (member.unused_data or self._read(_READ)).lstrip(b"\0")  # some writers pad with zeros
            while not data and (data := self._read(_READ)):
                data = data.lstrip(b"\0")

    def _unzstd(self) -> Iterator[bytes]:
        try:
            import zstandard
        except ImportError as error:
            problem = "is compressed with zstd, and the package for that is not installed."
            fix = f"Run {install_command('zst')}, or unpack it with zstd -d."
            raise UserError(problem, fix, where=self._name, exit_code=ExitCode.ENVIRONMENT) from error
        decompressor = zstandard.ZstdDecompressor(max_window_size=2**27)
        data = self._head
        while data:
            frame = decompressor.decompressobj()
            while not frame.eof:
                if not data:
                    raise self._damaged("zstd file", "it ends in the middle")
                try:
                    piece = frame.decompress(data[:_ZSTD_READ])
                except zstandard.ZstdError as error:
                    raise self._damaged("zstd file", str(error)) from error
                if piece:
                    yield piece
                data = (frame.unused_data + data[_ZSTD_READ:]) if frame.eof else data[_ZSTD_READ:]
                if not data and not frame.eof:
                    data = self._read(2**16)
            data = data or self._read(2**16)

    def _damaged(self, kind: str, detail: str) -> UserError:
        return UserError(f"is a damaged {kind}: {detail}.", "Fetch or write the file again.", where=self._name)

    def _guarded(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Stop where a small file goes on unpacking without end."""
        unpacked = 0
        for piece in pieces:
            unpacked += len(piece)
            if unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * self._read_bytes:
                raise UserError(
                    f"unpacks to more than {unpacked // 2**20:,} MiB from {self._read_bytes // 1024 + 1:,} KiB, which "
                    "no text does.",
                    "Unpack it yourself and look at it; a file of text is taken unpacked.",
                    where=self._name,
                )
            yield piece

    def chunks(self) -> Iterator[bytes]:
        """The content in pieces, once; the file is hashed and closed behind the last."""
        if self.start:
            yield self.start
            yield from self._chunks
        self.finish()

    def finish(self) -> None:
        """Read what is left, for the hash, and see that the file is still the one that was opened; once is enough."""
        if self._file.closed:
            return
        while self._read(_READ):
            pass
        after = os.fstat(self._file.fileno())
        self._file.close()
        require_unchanged(self._path, self._name, self._before, after)
        self._receipt.identity = self._hash.hexdigest()
        self._receipt.size = self._read_bytes

    def close(self) -> None:
        """Let go of the file without reading on."""
        self._file.close()


def sha256_of(file: Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_unchanged(path: str, name: str, before: os.stat_result, after: os.stat_result) -> None:
    """Refuse a file whose status changed while it was read: what was read may be neither the old nor the new."""
    with suppress(OSError):  # deleted while read: what was opened has been read whole
        if not _identity(before) == _identity(after) == _identity(os.stat(path)):
            raise UserError("was changed while it was read.", "Run again when nothing writes to it.", where=name)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
