"""Scripts without spaces between words, against the names that Unicode gives to characters."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpo_cli.data.text_notes import num_letters, num_unspaced


@pytest.mark.parametrize(
    ("text", "unspaced"),
    [
        ("the iron one, naïve café — “yes” 20 °C", 0),
        ("Кошка сидит на окне", 0),
        ("नमस्ते दुनिया", 0),
        ("고양이는 창가에 앉아 있다", 0),  # Korean sets spaces
        ("مرحبا بالعالم", 0),
        ("猫坐在窗台上。", 6),
        ("ネコは窓に座る、ｶﾅ", 9),
        ("แมวนั่ง", 7),
        ("ແມວນັ່ງ", 7),
        ("ឆ្មា", 4),
        ("ကြောင်", 6),
        ("𠀀 and 猫", 2),
        ("", 0),
        ("\ud800猫", 1),  # half a character
    ],
)
def test_what_has_no_spaces(text: str, unspaced: int) -> None:
    assert num_unspaced(text) == unspaced


def test_every_han_kana_and_thai_character_is_one() -> None:
    names = ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA", "KATAKANA LETTER", "THAI", "LAO", "KHMER")
    for number in range(0x80, 0x30000):
        name = unicodedata.name(chr(number), "")
        if name.startswith(names) and chr(number).isalpha() and number < 0x1A000:  # not letters of old documents
            assert num_unspaced(chr(number)) == 1, name
        if name.startswith(("LATIN", "GREEK", "CYRILLIC", "HANGUL", "ARABIC", "DEVANAGARI", "HEBREW")):
            assert num_unspaced(chr(number)) == 0, name


@given(st.text())
def test_letters(text: str) -> None:
    assert num_letters(text) == sum(c.isalpha() if c.isascii() else True for c in text)
    assert num_unspaced(text) <= num_letters(text)
