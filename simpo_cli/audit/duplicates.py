"""Which pairs repeat, contradict or go in circles, exactly or nearly, and which prompts the evaluation data hold too.

Exactly, pairs are known by 64-bit hashes of their prompt and their two responses, in 24 bytes a pair. At a million
pairs the chance that any two different ones share a hash is under one in ten million.

Two pairs are near-duplicates if their prompts, their chosen and their rejected responses are each nearly the same. They
are nearly contradictory if the prompts are, and each one's chosen response is nearly the other's rejected one. Two
prompts are nearly the same if two in three of the word triples in their turns are common, system turns aside:
instructions that all prompts share would make them all alike. Case, white space and punctuation do not count.

Candidates come from locality-sensitive hashing: rows that agree in a few bytes of their signatures, a band, are
compared, band after band.

    pairs    32 bands of five bytes, one of the prompt and two of each response. Where all three similarities are s, a
             pair of pairs is missed with a chance of (1 - s^5)^32: 0.02 % at 0.75, 2 % at 0.65. The bytes of the two
             responses are put in order first, so that contradictions meet as duplicates do.
    prompts  16 bands of four bytes. At a similarity s a prompt is missed with a chance of (1 - s^4)^16: 0.2 % at 0.75,
             3 % at 0.67.

Of the rows with equal bytes each is compared with eight, so the time is linear, however many are alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from simpo_cli.audit.columns import Column
from simpo_cli.audit.measures import asked_text, prompt_hash
from simpo_cli.audit.reading import read_batches
from simpo_cli.audit.signatures import (
    NEARLY_ASKED,
    NEARLY_SAME,
    SIGNATURE_BYTES,
    Hashes,
    Places,
    Signatures,
    mixed,
    num_equal,
    signatures_of,
)
from simpo_cli.data.file_bytes import FileReceipt
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import EncodedPair

NUM_BANDS = SIGNATURE_BYTES // 2
MOST_COMPARED = 8
"""Rows of equal keys that a row is compared with, in each band."""
_PROMPT_BYTES = 4  # of a band of prompts
_CHUNK = 2**14  # comparisons made together
_STRIPPED = 3  # times that the ends of chains are taken off before circles are looked for


# Pairs that are the same


class PairIdentities:
    """Pairs by their hashes, (n, 3) of prompt, chosen and rejected response."""

    def __init__(self, hashes: Hashes) -> None:
        self.prompts, self.chosen, self.rejected = hashes.T

    def duplicates(self) -> Places:
        """Places of pairs that occurred before: the same prompt, chosen and rejected."""
        pairs = _joined(self.prompts, self.chosen, self.rejected)
        _, first = np.unique(pairs, return_index=True)
        later = np.ones(len(pairs), dtype=bool)
        later[first] = False
        return np.flatnonzero(later)

    def contradictions(self) -> Places:
        """Places of pairs whose opposite occurs too: the same answers to the same prompt, preferred the other way."""
        low, high = np.minimum(self.chosen, self.rejected), np.maximum(self.chosen, self.rejected)
        _, group = np.unique(_joined(self.prompts, low, high), return_inverse=True)
        size = np.bincount(group)
        one_way = np.bincount(group, weights=self.chosen < self.rejected)
        return np.flatnonzero((one_way[group] > 0) & (one_way[group] < size[group]))

    def identical(self) -> Places:
        """Places of pairs whose two responses are the same."""
        return np.flatnonzero(self.chosen == self.rejected)

    def cycles(self) -> Places:
        """Places of pairs on a circle of three or more responses: A over B, B over C, C over A.

        Contradictory pairs, which are circles of two, are set aside first.
        """
        is_left = self.chosen != self.rejected
        is_left[self.contradictions()] = False
        left = np.flatnonzero(is_left)
        better, worse = _joined(self.prompts, self.chosen)[left], _joined(self.prompts, self.rejected)[left]
        for _ in range(_STRIPPED):  # a response that never wins, or never loses, is on no circle; mostly that is all
            stays = np.isin(better, worse) & np.isin(worse, better)
            left, better, worse = left[stays], better[stays], worse[stays]
        if not len(left):
            return left
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        responses, ends = np.unique(np.concatenate([better, worse]), return_inverse=True)
        winners, losers = ends[: len(left)], ends[len(left) :]
        beats = coo_array((np.ones(len(left), dtype=np.int32), (winners, losers)), shape=(len(responses),) * 2)
        _, circle = connected_components(beats.tocsr(), directed=True, connection="strong")
        on_a_circle: Places = left[circle[winners] == circle[losers]]
        return on_a_circle


def _joined(*hashes: Hashes) -> Hashes:
    """One hash of several, in their order."""
    joined = np.zeros_like(hashes[0])
    for one in hashes:
        joined = mixed(joined + one + np.uint64(0x9E3779B97F4A7C15))
    return joined


def repeated_and_contradictory(pairs: Sequence[EncodedPair]) -> tuple[int, int]:
    """How many pairs occurred before, and to how many the opposite occurs too, as training sees them.

    Only pairs that share their prompt are read, and 32 bytes are kept of each. A record that a recipe repeats is one.
    """
    # with the tokenizer library, which word counts do without
    from simpo_cli.data.store import positions_of_prompts, repeated_prompt_keys_of

    places, hashes = Column(np.uint64), Column(np.uint64, (3,))
    for positions in positions_of_prompts(pairs, repeated_prompt_keys_of(pairs)):
        for pair in (pairs[i] for i in positions.tolist()):
            places.add(xxhash.xxh3_64_intdigest(pair.where.encode("utf-8", "surrogatepass")))
            parts = (pair.prompt_key.encode(), pair.chosen.tobytes(), pair.rejected.tobytes())
            hashes.add([tuple(map(xxhash.xxh3_64_intdigest, parts))])
    _, first = np.unique(places.rows, return_index=True)
    identities = PairIdentities(hashes.rows[first])
    return len(identities.duplicates()), len(identities.contradictions())


# Pairs that are nearly the same


class _Band:
    """Rows by their keys in one band, those with equal keys in their order.

    Key and place are sorted as one number, ten times as fast as an indirect sort. Of the key's hash as many bits are
    kept as the place leaves, 40 or more up to sixteen million keys; two that then seem equal are compared for nothing.
    """

    def __init__(self, keys: Hashes) -> None:
        self._bits = np.uint64(len(keys).bit_length())
        both = mixed(keys)
        both >>= self._bits
        both <<= self._bits
        both |= np.arange(len(keys), dtype=np.uint64)
        both.sort()
        self._places = (both & ((np.uint64(1) << self._bits) - np.uint64(1))).view(np.int64)
        both >>= self._bits
        self._hashes = both

    def equal_rows(self) -> Iterator[tuple[Places, Places]]:
        """Each row with up to eight before it whose keys are equal, as (earlier, later), some thousand at a time."""
        for distance in range(1, MOST_COMPARED + 1):
            equal = np.flatnonzero(self._hashes[distance:] == self._hashes[:-distance])
            if not len(equal):
                break
            for chunk in _chunks(equal):
                yield self._places[chunk], self._places[chunk + distance]

    def rows_equal_to(self, keys: Hashes) -> Iterator[tuple[Places, Places]]:
        """Each of other keys with up to eight rows of equal ones, as (other, row), some thousand at a time."""
        hashes = mixed(keys) >> self._bits
        low, high = (np.searchsorted(self._hashes, hashes, side) for side in ("left", "right"))
        for distance in range(MOST_COMPARED):
            equal = np.flatnonzero(low + distance < high)
            if not len(equal):
                break
            for chunk in _chunks(equal):
                yield chunk, self._places[low[chunk] + distance]


def _chunks(places: Places) -> Iterator[Places]:
    return (places[start : start + _CHUNK] for start in range(0, len(places), _CHUNK))


@dataclass(frozen=True, slots=True)
class NearPairs:
    """Places of pairs."""

    duplicates: Places  # nearly the same as an earlier pair
    contradictions: Places  # nearly the opposite of another pair; no near-duplicates of an earlier one
    same_responses: Places  # whose two responses are nearly the same


def find_near_pairs(signatures: Signatures, repeated: Places, identical: Places) -> NearPairs:
    """Look for pairs that are nearly the same, by signatures (pairs, 3, 64) of prompt, chosen and rejected response.

    Known already are exact duplicates of an earlier pair, and pairs whose responses are identical.
    """
    same_responses = num_equal(signatures[:, 1], signatures[:, 2]) >= NEARLY_SAME
    duplicate, contradictory = np.zeros((2, len(signatures)), dtype=bool)
    places = np.delete(np.arange(len(signatures)), repeated)
    for band in range(NUM_BANDS):
        for earlier, later in _Band(_pair_keys(signatures, band)[places]).equal_rows():
            earlier, later = places[earlier], places[later]
            unknown = ~duplicate[later]
            earlier, later = earlier[unknown], later[unknown]
            alike, opposed = _compare(signatures[earlier], signatures[later])
            duplicate[later[alike]] = True
            # where the responses of one pair are alike themselves, neither order says anything
            opposed &= ~(same_responses[earlier] | same_responses[later])
            contradictory[earlier[opposed]] = True
            contradictory[later[opposed]] = True
    same_responses[identical] = False
    return NearPairs(*map(np.flatnonzero, (duplicate, contradictory & ~duplicate, same_responses)))


def _compare(first: Signatures, second: Signatures) -> NDArray[np.bool_]:
    """(2, n) whether n pairs are nearly the same as n others, and whether they are with the responses swapped."""
    found = np.zeros((2, len(first)), dtype=bool)
    likely = np.flatnonzero(num_equal(first[:, 0], second[:, 0]) >= NEARLY_ASKED)
    first, second = first[likely], second[likely]
    for row, side in enumerate((1, 2)):
        found[row, likely] = (num_equal(first[:, 1], second[:, side]) >= NEARLY_SAME) & (
            num_equal(first[:, 2], second[:, 3 - side]) >= NEARLY_SAME
        )
    return found


def _pair_keys(signatures: Signatures, band: int) -> Hashes:
    """(pairs,) five bytes of each pair, the same if its two responses are swapped."""
    chosen, rejected = (_as_numbers(signatures[:, side], 2 * band, 2) for side in (1, 2))
    keys = signatures[:, 0, band].astype(np.uint64)
    for part in (np.minimum(chosen, rejected), np.maximum(chosen, rejected)):
        keys = (keys << np.uint64(16)) | part
    return keys


def _as_numbers(signatures: Signatures, start: int, num_bytes: int) -> Hashes:
    """(n,) some bytes of each signature as one number."""
    part = np.ascontiguousarray(signatures[:, start : start + num_bytes])
    return part.view(f"<u{num_bytes}")[:, 0].astype(np.uint64)


# Prompts of the evaluation data


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of the evaluation data, each once."""

    hashes: Hashes  # (n,) in ascending order
    signatures: Signatures  # (n, 64) of their texts
    files: tuple[FileReceipt, ...]  # where they are from


def read_prompts(reader: PairReader) -> Prompts:
    """The prompts of the evaluation data. Raises UserError where a source or record is refused."""
    hashes, signatures = Column(np.uint64), Column(np.uint8, (SIGNATURE_BYTES,))
    for batch in read_batches(reader, None):
        hashes.add([prompt_hash(read.pair) for read in batch])
        signatures.add(signatures_of(asked_text(read.pair) for read in batch))
    unique, first = np.unique(hashes.rows, return_index=True)
    return Prompts(unique, signatures.rows[first], tuple(reader.files))


def find_leaks(prompts: Hashes, signatures: Signatures, evaluation: Prompts) -> tuple[Places, Places]:
    """Training pairs whose prompt, by hash (pairs,) and signature (pairs, 64), is in the evaluation data.

    Returns:
        Places of those that are there to the letter, and of those that are there nearly.
    """
    unique, first, which = np.unique(prompts, return_index=True, return_inverse=True)
    same = np.isin(unique, evaluation.hashes)
    near = np.zeros(len(unique), dtype=bool)
    for start in range(0, SIGNATURE_BYTES, _PROMPT_BYTES):
        band = _Band(_as_numbers(evaluation.signatures, start, _PROMPT_BYTES))
        left = np.flatnonzero(~(same | near))
        keys = _as_numbers(signatures[first[left]], start, _PROMPT_BYTES)
        for mine, theirs in band.rows_equal_to(keys):
            equal = num_equal(signatures[first[left[mine]]], evaluation.signatures[theirs])
            near[left[mine[equal >= NEARLY_ASKED]]] = True
    return np.flatnonzero(same[which]), np.flatnonzero(near[which])
