"""The sha256 of a file, taken in a thread beside the one that reads or writes it."""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

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
