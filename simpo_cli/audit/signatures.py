"""Texts to sets of word triples, and these to MinHash signatures of 64 bytes, by which nearly equal texts are known.

Words are runs of letters and digits, in lower case. Signs that mean something by themselves in mathematics and code
(`+ - / < = >` and the like) are words, and so is every character of three bytes or more in UTF-8: Chinese, Japanese and
Thai have no spaces. White space and punctuation only separate. A triple is three words in a row. A text counts as
having two blank words at either end, so that each of its words is in three triples, and one word is a text as well.
Triples are 64-bit hashes, made by arithmetic on the bytes of many texts at once: there is no step of Python for a word.

The share of bytes in which two signatures agree estimates the Jaccard similarity of the two sets: common triples over
all triples (Broder, "On the resemblance and containment of documents", 1997). Of each minimum only the last 8 bits are
kept (Li and König, "b-Bit Minwise Hashing", 2010), which two unlike texts share once in 256 times. The standard error
is at most 1/16, and nought for texts that are the same but for case, white space and punctuation.
"""

from collections.abc import Iterable, Sequence
from struct import Struct

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from simpo_cli.data.batches import in_batches

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

MOST_CHARACTERS = 2**20
"""A longer text is known by its beginning."""
_MOST_LETTERS = 512
"""Bytes; a longer word is known by its beginning and its length."""

_SEPARATES, _WITHIN, _WORD, _CONTINUES = 0, 1, 2, 3  # kinds of bytes; odd ones continue the word that they are in
_SIGNS = b"+-/<=>%^&|~$@#"
_FIRST, _SECOND, _THIRD, _LETTERS = (
    np.uint64(factor) for factor in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD1342543DE82EF95)
)


def mixed(values: Hashes) -> Hashes:
    """Spread the bits of each value over all 64 (the finaliser of SplitMix64); 0 stays 0."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def triples(texts: Sequence[str]) -> tuple[Hashes, Places]:
    """The word triples of each text.

    Returns:
        Hashes of all triples, and (n + 1,) where those of each text begin and end among them. No text is without one.
    """
    beginnings = [text[:MOST_CHARACTERS] for text in texts]
    encoded = [(text if text.isascii() else text.lower()).encode("utf-8", "surrogatepass") for text in beginnings]
    joined_texts = bytearray(b"\n").join([*encoded, bytes(8)]).translate(_LOWER)
    letters = np.frombuffer(joined_texts, dtype=np.uint8)
    if not joined_texts.isascii():
        _blank_punctuation(letters)
    starts, lengths = _words(letters)
    words = _word_hashes(letters, starts, lengths)
    before = np.searchsorted(starts, np.cumsum([len(text) + 1 for text in encoded]))  # words up to the end of each text
    counts = np.diff(before, prepend=0)
    offsets = np.concatenate([[0], np.cumsum(counts + 2)])
    spaced = np.zeros(offsets[-1], dtype=np.uint64)  # two blank words behind each text, and so in front of the next
    spaced[np.arange(len(words)) + np.repeat(2 * np.arange(len(texts)), counts)] = words
    joined = spaced * _FIRST
    joined[1:] += spaced[:-1] * _SECOND
    joined[2:] += spaced[:-2] * _THIRD
    return mixed(joined), offsets


_LOWER = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"abcdefghijklmnopqrstuvwxyz")


def _kinds() -> NDArray[np.uint8]:
    kinds = np.full(256, _SEPARATES, dtype=np.uint8)
    kinds[np.frombuffer(b"0123456789abcdefghijklmnopqrstuvwxyz", dtype=np.uint8)] = _WITHIN
    kinds[np.frombuffer(_SIGNS, dtype=np.uint8)] = _WORD
    kinds[0x80:0xC0] = _CONTINUES
    kinds[0xC0:0xE0] = _WITHIN  # begins a character of two bytes, such as é or я
    kinds[0xE0:] = _WORD
    return kinds


_KINDS = _kinds().tobytes()
_PUNCTUATION = (  # first byte, second bytes, length: characters that only separate, beside those of ASCII
    (0xC2, (0xA0, 0xA1, 0xAB, 0xAD, 0xB7, 0xBB, 0xBF), 2),  # no-break space, ¡ « soft hyphen · » ¿
    (0xE2, (0x80,), 3),  # U+2000 to U+203F: spaces, dashes, quotation marks, bullets
    (0xE3, (0x80,), 3),  # U+3000 to U+303F: the same for Chinese and Japanese
)


def _blank_punctuation(letters: NDArray[np.uint8]) -> None:
    for lead, following, length in _PUNCTUATION:
        places = np.flatnonzero(letters[: max(0, len(letters) - length + 1)] == lead)
        if len(places):
            places = places[np.isin(letters[places + 1], following)]
            for i in range(length):
                letters[places + i] = ord(" ")


def _words(letters: NDArray[np.uint8]) -> tuple[Places, Places]:
    """Where each word begins, and how many bytes it has."""
    kinds = np.frombuffer(letters.tobytes().translate(_KINDS), dtype=np.uint8)
    goes_on = (kinds & 1).view(np.bool_)
    is_start = kinds == _WITHIN
    is_start[1:] &= ~goes_on[:-1]
    is_start |= kinds == _WORD
    is_end = kinds != _SEPARATES  # the last byte of a word
    is_end[:-1] &= is_start[1:] | ~goes_on[1:]
    starts = np.flatnonzero(is_start)
    return starts, np.flatnonzero(is_end) + 1 - starts


def _word_hashes(letters: NDArray[np.uint8], starts: Places, lengths: Places) -> Hashes:
    """Hash of each word, eight letters at a time, for all words at once."""
    eight_from = np.ndarray((len(letters) - 7,), dtype="<u8", buffer=letters, strides=(1,))  # at any byte, not each 8th
    hashes = lengths.astype(np.uint64)
    left: Places | slice = slice(None)  # all; then those that are longer
    for begin in range(0, _MOST_LETTERS, 8):
        eight = eight_from[starts[left] + begin] & _FIRST_BYTES[np.minimum(lengths[left] - begin, 8)]
        hashes[left] = mixed((hashes[left] ^ eight) * _LETTERS)
        left = np.flatnonzero(lengths > begin + 8)
        if not len(left):
            break
    return hashes


_FIRST_BYTES = np.array([(1 << 8 * count) - 1 for count in range(9)], dtype=np.uint64)
"""What leaves of eight bytes the first ones, by how many."""


SIGNATURE_BYTES = 64
NEARLY_SAME = 40
"""Two responses are nearly the same if this many bytes agree, five in eight. One changed word in twenty leaves three in
four: the line lies two standard errors of the estimate below, so that such texts are found."""
NEARLY_ASKED = 43
"""The same for two prompts, two in three: they are short, and one changed word in ten makes another question."""

_SEED = 1
_PACKED = Struct(f"{SIGNATURE_BYTES}I")  # of all ways from lists of numbers to an array the fastest
_BATCH_CHARACTERS, _BATCH_TEXTS = 2**19, 2**16
_COMPARED = 2**14  # rows at a time

Signatures = NDArray[np.uint8]


def signatures_of(texts: Iterable[str]) -> Signatures:
    """(texts, 64) the signature of each text; no more of the texts is held than is signed together."""
    batches = in_batches(texts, len, most_characters=_BATCH_CHARACTERS, most_items=_BATCH_TEXTS)
    return np.concatenate([np.empty((0, SIGNATURE_BYTES), dtype=np.uint8), *map(_signed, batches)])


def _signed(texts: Sequence[str]) -> Signatures:
    hashes, offsets = triples(texts)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), SIGNATURE_BYTES, _SEED)
    minima = np.frombuffer(b"".join([_PACKED.pack(*row) for row in matrix.to_rows()]), dtype=np.uint32)
    return minima.astype(np.uint8).reshape(len(texts), SIGNATURE_BYTES)


def num_equal(first: Signatures, second: Signatures) -> NDArray[np.int64]:
    """(n,) in how many bytes two rows of signatures (n, 64) agree."""
    counts = np.empty(len(first), dtype=np.int64)
    for start in range(0, len(first), _COMPARED):
        rows = slice(start, start + _COMPARED)
        counts[rows] = np.count_nonzero(first[rows] == second[rows], axis=-1)
    return counts
