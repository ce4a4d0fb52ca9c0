"""Texts to MinHash signatures of 64 bytes: the share of bytes in which two agree estimates how alike the texts are.

What is estimated is the Jaccard similarity of the two sets of word triples (see `shingles`): common triples over all
triples (Broder, "On the resemblance and containment of documents", 1997). Of each minimum only the last 8 bits are
kept (Li and König, "b-Bit Minwise Hashing", 2010), which two unlike texts share once in 256 times. The standard error
is at most 1/16, and nought for texts that are the same but for case, white space and punctuation.
"""

from collections.abc import Sequence
from struct import Struct

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from simpo_cli.audit.shingles import triples

SIGNATURE_BYTES = 64
NEARLY_SAME = 40
"""Two responses are nearly the same if this many bytes agree, five in eight. One changed word in twenty leaves three in
four: the line lies two standard errors of the estimate below, so that such texts are found."""
NEARLY_ASKED = 43
"""The same for two prompts, two in three: they are short, and one changed word in ten makes another question."""

_SEED = 1
_PACKED = Struct(f"{SIGNATURE_BYTES}I")  # of all ways from lists of numbers to an array the fastest
_BATCH_CHARACTERS = 2**19
_COMPARED = 2**14  # rows at a time

Signatures = NDArray[np.uint8]


def signatures_of(texts: Sequence[str]) -> Signatures:
    """(texts, 64) the signature of each text."""
    hashes, offsets = triples(texts)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), SIGNATURE_BYTES, _SEED)
    minima = np.frombuffer(b"".join([_PACKED.pack(*row) for row in matrix.to_rows()]), dtype=np.uint32)
    return minima.astype(np.uint8).reshape(len(texts), SIGNATURE_BYTES)


class SignatureList:
    """Collects the signatures of texts in their order, 64 bytes a text; the texts themselves are kept for one batch."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._num_characters = 0
        self._signed = bytearray()

    def add(self, *texts: str) -> None:
        """Take in more texts."""
        self._texts += texts
        self._num_characters += sum(map(len, texts))
        if self._num_characters >= _BATCH_CHARACTERS:
            self._sign()

    @property
    def rows(self) -> Signatures:
        """(texts, 64) the signatures of all texts so far; nothing can be added any more."""
        self._sign()
        return np.frombuffer(self._signed, dtype=np.uint8).reshape(-1, SIGNATURE_BYTES)

    def _sign(self) -> None:
        if self._texts:
            self._signed += signatures_of(self._texts).tobytes()
            self._texts, self._num_characters = [], 0


def num_equal(first: Signatures, second: Signatures) -> NDArray[np.int64]:
    """(n,) in how many bytes two rows of signatures (n, 64) agree."""
    counts = np.empty(len(first), dtype=np.int64)
    for start in range(0, len(first), _COMPARED):
        rows = slice(start, start + _COMPARED)
        counts[rows] = np.count_nonzero(first[rows] == second[rows], axis=-1)
    return counts
