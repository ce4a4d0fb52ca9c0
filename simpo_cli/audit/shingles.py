"""Texts to sets of word triples, by which nearly equal texts are known.

Words are runs of letters and digits, in lower case. Signs that mean something by themselves in mathematics and code
(`+ - / < = >` and the like) are words, and so is every character of three bytes or more in UTF-8: Chinese, Japanese and
Thai have no spaces. White space and punctuation only separate. A triple is three words in a row. A text counts as
having two blank words at either end, so that each of its words is in three triples, and one word is a text as well.

Triples are 64-bit hashes, made by arithmetic on the bytes of many texts at once: there is no step of Python for a word.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

_SEPARATES, _WITHIN, _WORD, _CONTINUES = 0, 1, 2, 3  # kinds of bytes; odd ones go on with the word that they are in
_SIGNS = b"+-/<=>%^&|~$@#"
_BLOCK = 2**17  # bytes of a text that are hashed together: their hashes fit in a processor's cache
_LONGEST_WORD = 2**16  # bytes; a longer run of letters is cut up

_WORD_PRIME, _FIRST, _SECOND, _THIRD = (
    np.uint64(factor) for factor in (0xD1342543DE82EF95, 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
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

    Args:
        texts: n texts.

    Returns:
        Hashes of all triples, and (n + 1,) where those of each text begin and end among them. No text is without one.
    """
    encoded = [(text if text.isascii() else text.lower()).encode("utf-8", "surrogatepass") for text in texts]
    letters = np.frombuffer(bytearray(b"\n").join(encoded).translate(_LOWER), dtype=np.uint8)
    ends = np.cumsum([len(text) + 1 for text in encoded], dtype=np.int64)
    _blank_punctuation(letters)
    starts = _word_starts(letters)
    words = _word_hashes(letters, starts)
    before = np.searchsorted(starts, ends)  # words up to the end of each text
    counts = np.diff(before, prepend=0)
    offsets = np.concatenate([[0], np.cumsum(counts + 2)])
    spaced = np.zeros(offsets[-1], dtype=np.uint64)  # two blank words behind each text, and so in front of the next
    spaced[np.arange(len(words)) + np.repeat(2 * np.arange(len(texts)), counts)] = mixed(words)
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


_KINDS = _kinds()
_VALUES = np.where(_KINDS == _SEPARATES, np.uint64(0), mixed(np.arange(1, 257, dtype=np.uint64)))


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


def _word_starts(letters: NDArray[np.uint8]) -> Places:
    kinds = np.frombuffer(letters.tobytes().translate(_KINDS.tobytes()), dtype=np.uint8)  # faster than an index
    is_start = kinds == _WITHIN
    is_start[1:] &= (kinds[:-1] & 1) == 0
    is_start |= kinds == _WORD
    starts = np.flatnonzero(is_start)
    lengths = np.diff(starts, append=len(letters))
    long = np.flatnonzero(lengths > _LONGEST_WORD)
    if len(long):
        more = [np.arange(starts[i] + _LONGEST_WORD, starts[i] + lengths[i], _LONGEST_WORD) for i in long.tolist()]
        cuts = np.concatenate(more)
        starts = np.sort(np.concatenate([starts, cuts[kinds[cuts] != _SEPARATES]]))
    return starts


def _word_hashes(letters: NDArray[np.uint8], starts: Places) -> Hashes:
    """Hash of each word: the sum of value(letter j) * prime^j, modulo 2^64.

    Powers go by the place in the block, for a sum over every word at once; the word's own place is then divided out,
    which an odd prime allows.
    """
    powers, inverse_powers = _powers()
    hashes = np.empty(len(starts), dtype=np.uint64)
    firsts = np.unique(np.searchsorted(starts, np.arange(0, len(letters) + 1, _BLOCK)))
    for first, last in zip(firsts.tolist(), [*firsts[1:].tolist(), len(starts)], strict=True):
        if first == last:
            continue
        begin = starts[first]
        end = starts[last] if last < len(starts) else len(letters)
        end = min(end, starts[last - 1] + _LONGEST_WORD)  # behind that, there are only separators, whose value is 0
        values = np.take(_VALUES, letters[begin:end], mode="clip")  # nothing to clip: it saves a check
        values *= powers[: len(values)]
        places = starts[first:last] - begin
        hashes[first:last] = np.add.reduceat(values, places) * inverse_powers[places]
    return hashes


@cache
def _powers() -> tuple[Hashes, Hashes]:
    count = _BLOCK + _LONGEST_WORD
    inverse = np.uint64(pow(int(_WORD_PRIME), -1, 2**64))
    powers, inverse_powers = (
        np.cumprod(np.concatenate([np.ones(1, dtype=np.uint64), np.full(count - 1, factor)]), dtype=np.uint64)
        for factor in (_WORD_PRIME, inverse)
    )
    return powers, inverse_powers
