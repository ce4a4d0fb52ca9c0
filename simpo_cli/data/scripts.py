"""Scripts that set no spaces between words, where counting what stands between blanks says nothing of a length."""

import re

_RANGES = (
    ("\u0e01", "\u0e5b"),  # Thai
    ("\u0e81", "\u0edf"),  # Lao
    ("\u0f00", "\u0fff"),  # Tibetan
    ("\u1000", "\u109f"),  # Myanmar
    ("\u1780", "\u17ff"),  # Khmer
    ("\u1950", "\u19df"),  # Tai Le, New Tai Lue
    ("\u1a20", "\u1aaf"),  # Tai Tham
    ("\u3005", "\u3007"),  # marks and the zero of Han
    ("\u3041", "\u30ff"),  # Hiragana, Katakana
    ("\u3105", "\u312f"),  # Bopomofo
    ("\u31a0", "\u31ff"),  # Bopomofo and Katakana extended
    ("\u3400", "\u4dbf"),  # Han
    ("\u4e00", "\u9fff"),
    ("\ua000", "\ua4cf"),  # Yi
    ("\ua980", "\ua9ff"),  # Javanese, Myanmar extended
    ("\uaa60", "\uaadf"),  # Myanmar extended, Tai Viet
    ("\uf900", "\ufaff"),  # Han for compatibility
    ("\uff66", "\uff9f"),  # Katakana of half width
    ("\U00020000", "\U000323af"),  # Han extended
)
_UNSPACED = re.compile("[" + "".join(f"{first}-{last}" for first, last in _RANGES) + "]+")

_NO_LEADS = bytes(byte for byte in range(256) if byte not in (0xE0, 0xE1, *range(0xE3, 0xEB), 0xEF, 0xF0))
"""Bytes with which, in UTF-8, none of these characters begins."""
_NO_LETTERS = bytes(byte for byte in range(0xC0) if not (byte < 128 and chr(byte).isalpha()))
"""Bytes that neither are a letter of ASCII nor begin another character in UTF-8."""


def num_unspaced(text: str) -> int:
    """Characters of scripts that set no spaces between words: Han, Kana, Thai, Lao, Tibetan, Myanmar, Khmer and kin."""
    if text.isascii() or not text.encode("utf-8", "surrogatepass").translate(None, _NO_LEADS):
        return 0  # in nearly all texts that are not in such scripts; the search is ten times as slow
    return sum(map(len, _UNSPACED.findall(text)))


def num_letters(text: str) -> int:
    """Letters of ASCII, and all characters beyond ASCII."""
    return len(text.encode("utf-8", "surrogatepass").translate(None, _NO_LETTERS))
