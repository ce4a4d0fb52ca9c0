"""Texts to MinHash signatures of 64 bytes: the share of bytes in which two agree estimates how alike the texts are.

What is estimated is the Jaccard similarity of the two sets of word triples (see `shingles`): common triples over all
triples (Broder, "On the resemblance and containment of documents", 1997). Of each minimum only the last 8 bits are
kept (Li and König, "b-Bit Minwise Hashing", 2010), which two unlike texts share once in 256 times. The standard error
is at most 1/16, and nought for texts that are the same but for case, white space and punctuation.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from simpo_cli.audit.shingles import triples

SIGNATURE_BYTES = 64
NEARLY_SAME = 48
"""Two texts are nearly the same if this many bytes agree, three in four: one word in about twenty was changed."""

_SEED = 1
_BATCH_CHARACTERS = 2**19
_MOST_WAITING = 2  # batches; what is read faster than it can be signed waits, and memory stays bounded

Signatures = NDArray[np.uint8]


def signatures_of(texts: Sequence[str]) -> Signatures:
    """(texts, 64) the signature of each text."""
    hashes, offsets = triples(texts)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), SIGNATURE_BYTES, _SEED)
    minima = np.fromiter(chain.from_iterable(matrix.to_rows()), dtype=np.uint32, count=len(texts) * SIGNATURE_BYTES)
    return minima.astype(np.uint8).reshape(len(texts), SIGNATURE_BYTES)


class SignatureList:
    """Collects the signatures of texts in their order; the work is done in batches by a second thread."""

    def __init__(self, worker: ThreadPoolExecutor) -> None:
        self._worker = worker
        self._texts: list[str] = []
        self._num_characters = 0
        self._waiting: deque[Future[Signatures]] = deque()
        self._signed = bytearray()

    def add(self, *texts: str) -> None:
        """Take in more texts, which are kept until their batch has been signed."""
        self._texts += texts
        self._num_characters += sum(map(len, texts))
        if self._num_characters >= _BATCH_CHARACTERS:
            self._send()
            self._collect(_MOST_WAITING)

    def finish(self) -> Signatures:
        """(texts, 64) the signatures of all texts, once they are there."""
        if self._texts:
            self._send()
        self._collect(0)
        return np.frombuffer(self._signed, dtype=np.uint8).reshape(-1, SIGNATURE_BYTES)

    def _send(self) -> None:
        self._waiting.append(self._worker.submit(signatures_of, self._texts))
        self._texts, self._num_characters = [], 0

    def _collect(self, most: int) -> None:
        while len(self._waiting) > most:
            self._signed += self._waiting.popleft().result().tobytes()


@contextmanager
def signing() -> Iterator[SignatureList]:
    """A list of signatures, with its thread for as long as it is needed."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="signatures") as worker:
        yield SignatureList(worker)


def num_equal(first: Signatures, second: Signatures) -> NDArray[np.int64]:
    """(n,) in how many bytes two rows of signatures (n, 64) agree."""
    return np.count_nonzero(first == second, axis=-1)
