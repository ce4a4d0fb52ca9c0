"""Pairs that are nearly the same, and training prompts nearly in the evaluation data, without comparing all with all.

Two pairs are near-duplicates if their prompts, their chosen and their rejected responses are each nearly the same. They
are nearly contradictory if the prompts are, and each one's chosen response is nearly the other's rejected one.

Candidates come from locality-sensitive hashing: 32 times over, pairs are sorted by five bytes of their signatures, one
of the prompt and two of each response, and pairs with equal bytes are compared. Where all three similarities are s, a
pair of pairs is missed with a chance of (1 - s^5)^32: 0.02 % at 0.75, 2 % at 0.65. The bytes of the two responses are
put in order before they are compared, so that contradictions meet as duplicates do. In a group with equal bytes each
pair is compared with the eight before it, so the time is linear, however many are alike.

Two prompts are nearly the same if two in three of the word triples in their turns are common, system turns aside:
instructions that all prompts share would make them all alike. Case, white space and punctuation do not count. Prompts
whose signatures agree in four bytes in a row, at one of 16 places, are compared. At a similarity s a prompt is missed
with a chance of (1 - s^4)^16: 0.2 % at 0.75, 3 % at 0.67.
"""

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simpo_cli.audit.identity import prompt_hash
from simpo_cli.audit.measures import asked_text
from simpo_cli.audit.signatures import (
    NEARLY_ASKED,
    NEARLY_SAME,
    SIGNATURE_BYTES,
    Hashes,
    Places,
    SignatureList,
    Signatures,
    mixed,
    num_equal,
)
from simpo_cli.data.load import FileReceipt, PairReader

NUM_BANDS = SIGNATURE_BYTES // 2
MOST_COMPARED = 8
"""Pairs of a group that a pair is compared with, at each sorting."""
_CHUNK = 2**14  # comparisons made together


@dataclass(frozen=True, slots=True)
class NearPairs:
    """Places of pairs.

    Attributes:
        duplicates: nearly the same as an earlier pair.
        contradictions: nearly the opposite of another pair; no near-duplicates of an earlier one.
        same_responses: whose two responses are nearly the same.
    """

    duplicates: Places
    contradictions: Places
    same_responses: Places


def find_near_pairs(signatures: Signatures, repeated: Places, identical: Places) -> NearPairs:
    """Look for pairs that are nearly the same.

    Args:
        signatures: (pairs, 3, 64) of the prompt, the chosen and the rejected response of each pair.
        repeated: places of exact duplicates of an earlier pair, which are known already.
        identical: places of pairs whose responses are the same to the letter, which are known as well.
    """
    search = _Search(signatures)
    asked = np.ones(len(signatures), dtype=bool)
    asked[repeated] = False
    places = np.flatnonzero(asked)
    for band in range(NUM_BANDS):
        search.compare_alike(places, band)
    search.same_responses[identical] = False
    return NearPairs(
        duplicates=np.flatnonzero(search.duplicate),
        contradictions=np.flatnonzero(search.contradictory & ~search.duplicate),
        same_responses=np.flatnonzero(search.same_responses),
    )


class _Search:
    """What is known so far of each pair.

    Attributes:
        same_responses, duplicate, contradictory: (pairs,) whether a pair is.
    """

    def __init__(self, signatures: Signatures) -> None:
        self._signatures = signatures
        self.same_responses = num_equal(signatures[:, 1], signatures[:, 2]) >= NEARLY_SAME
        self.duplicate, self.contradictory = np.zeros((2, len(signatures)), dtype=bool)

    def compare_alike(self, places: Places, band: int) -> None:
        """Compare those pairs with each other whose keys in this band are equal."""
        keys, order = _sorted(_keys(self._signatures, band)[places])
        for distance in range(1, MOST_COMPARED + 1):
            equal = np.flatnonzero(keys[distance:] == keys[:-distance])
            if not len(equal):
                break
            for start in range(0, len(equal), _CHUNK):
                chunk = equal[start : start + _CHUNK]
                earlier, later = places[order[chunk]], places[order[chunk + distance]]
                unknown = ~self.duplicate[later]
                self._compare(earlier[unknown], later[unknown])

    def _compare(self, earlier: Places, later: Places) -> None:
        first, second = self._signatures[earlier], self._signatures[later]
        likely = np.flatnonzero(num_equal(first[:, 0], second[:, 0]) >= NEARLY_ASKED)
        first, second, earlier, later = first[likely], second[likely], earlier[likely], later[likely]
        alike, opposed = (
            (num_equal(first[:, 1], second[:, side]) >= NEARLY_SAME)
            & (num_equal(first[:, 2], second[:, 3 - side]) >= NEARLY_SAME)
            for side in (1, 2)
        )
        self.duplicate[later[alike]] = True
        # where the responses of one pair are alike themselves, neither order says anything
        opposed &= ~(self.same_responses[earlier] | self.same_responses[later])
        self.contradictory[earlier[opposed]] = True
        self.contradictory[later[opposed]] = True


def _keys(signatures: Signatures, band: int) -> Hashes:
    """(pairs,) five bytes of each pair, the same if its two responses are swapped."""
    rows = slice(2 * band, 2 * band + 2)
    chosen, rejected = (np.ascontiguousarray(signatures[:, side, rows]).view("<u2")[:, 0] for side in (1, 2))
    keys = signatures[:, 0, band].astype(np.uint64)
    for part in (np.minimum(chosen, rejected), np.maximum(chosen, rejected)):
        keys = (keys << np.uint64(16)) | part
    return keys


def _sorted(keys: Hashes) -> tuple[Hashes, Places]:
    """Keys in order, equal ones in the order of their places, and these places.

    Key and place are sorted as one number, ten times as fast as an indirect sort. Of the key's hash as many bits are
    kept as the place leaves, 40 or more up to sixteen million keys; two that then seem equal are compared for nothing.
    """
    bits = np.uint64(len(keys).bit_length())
    both = mixed(keys)
    both >>= bits
    both <<= bits
    both |= np.arange(len(keys), dtype=np.uint64)
    both.sort()
    places = both & ((np.uint64(1) << bits) - np.uint64(1))
    both >>= bits
    return both, places.view(np.int64)


_BAND_BYTES = 4
_MOST_COMPARED = 8  # evaluation prompts of a group that a training prompt is compared with, at each place
_LEAK_CHUNK = 2**14  # comparisons made together


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of the evaluation data, each once.

    Attributes:
        hashes: (n,) in ascending order.
        signatures: (n, 64) of their texts.
        files: where they are from.
    """

    hashes: Hashes
    signatures: Signatures
    files: tuple[FileReceipt, ...]


@dataclass(frozen=True, slots=True)
class Leaks:
    """Places of training pairs whose prompt is in the evaluation data, to the letter (`same`) or nearly (`near`)."""

    same: Places
    near: Places


def read_prompts(reader: PairReader) -> Prompts:
    """The prompts of the evaluation data.

    Raises:
        UserError: a source or record is refused.
    """
    hashes, signatures = array("Q"), SignatureList()
    for pair in reader:
        hashes.append(prompt_hash(pair))
        signatures.add(asked_text(pair))
    unique, first = np.unique(np.frombuffer(hashes, dtype=np.uint64), return_index=True)
    return Prompts(unique, signatures.rows[first], tuple(reader.files))


def find_leaks(prompts: Hashes, signatures: Signatures, evaluation: Prompts) -> Leaks:
    """Training pairs whose prompt the evaluation data hold.

    Args:
        prompts: (pairs,) a hash of each training pair's prompt.
        signatures: (pairs, 64) of their texts.
        evaluation: what is looked for.
    """
    unique, first, which = np.unique(prompts, return_index=True, return_inverse=True)
    same = np.isin(unique, evaluation.hashes)
    asked = np.flatnonzero(~same)
    near = np.zeros(len(unique), dtype=bool)
    near[asked] = _nearly_among(signatures[first[asked]], evaluation.signatures)
    return Leaks(np.flatnonzero(same[which]), np.flatnonzero(near[which]))


def _nearly_among(signatures: Signatures, others: Signatures) -> NDArray[np.bool_]:
    """(n,) whether one of the others is nearly the same."""
    found = np.zeros(len(signatures), dtype=bool)
    for start in range(0, SIGNATURE_BYTES, _BAND_BYTES):
        theirs = _band(others, start)
        order = np.argsort(theirs, kind="stable")
        theirs = theirs[order]
        mine = _band(signatures, start)
        low, high = np.searchsorted(theirs, mine, "left"), np.searchsorted(theirs, mine, "right")
        for distance in range(_MOST_COMPARED):
            places = np.flatnonzero((low + distance < high) & ~found)
            if not len(places):
                break
            for chunk in np.split(places, range(_LEAK_CHUNK, len(places), _LEAK_CHUNK)):
                equal = num_equal(signatures[chunk], others[order[low[chunk] + distance]])
                found[chunk[equal >= NEARLY_ASKED]] = True
    return found


def _band(signatures: Signatures, start: int) -> NDArray[np.uint32]:
    """(n,) four bytes of each signature as one number."""
    return np.ascontiguousarray(signatures[:, start : start + _BAND_BYTES]).view("<u4")[:, 0]
