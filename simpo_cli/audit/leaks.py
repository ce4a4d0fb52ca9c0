"""Training prompts that the evaluation data hold too: to the letter, or nearly.

Two prompts are nearly the same if two in three of the word triples in their turns are common, system turns aside:
instructions that all prompts share would make them all alike. Case, white space and punctuation do not count.

Candidates come from locality-sensitive hashing: prompts whose signatures agree in four bytes in a row, at one of 16
places, are compared. At a similarity s a prompt is missed with a chance of (1 - s^4)^16: 0.2 % at 0.75, 3 % at 0.67.
"""

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simpo_cli.audit.identity import Hashes, Places, prompt_hash
from simpo_cli.audit.signatures import NEARLY_ASKED, SIGNATURE_BYTES, SignatureList, Signatures, num_equal
from simpo_cli.audit.texts import asked_text
from simpo_cli.data.load import FileReceipt, PairReader

_BAND_BYTES = 4
_MOST_COMPARED = 8  # evaluation prompts of a group that a training prompt is compared with, at each place
_CHUNK = 2**14  # comparisons made together


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
            for chunk in np.split(places, range(_CHUNK, len(places), _CHUNK)):
                equal = num_equal(signatures[chunk], others[order[low[chunk] + distance]])
                found[chunk[equal >= NEARLY_ASKED]] = True
    return found


def _band(signatures: Signatures, start: int) -> NDArray[np.uint32]:
    """(n,) four bytes of each signature as one number."""
    return np.ascontiguousarray(signatures[:, start : start + _BAND_BYTES]).view("<u4")[:, 0]
