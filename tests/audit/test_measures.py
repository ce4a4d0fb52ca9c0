"""Trouble in texts, mojibake made by the wrong decoders, languages that are none, and features of the surface."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpo_cli.audit.measures import (
    FEATURES,
    begins_with_header,
    goes_on_with_a_turn,
    has_control_characters,
    is_mojibake,
    spells_special_token,
    surface_features,
    trouble_in,
)
from simpo_cli.data.pair import Message, PreferencePair

GOOD = [
    "It’s “fine” – really… €5, 20 °C, ½ cup, naïve café, 100 µm, § 4, ±2, © 2024 ™",
    "Voilà » dit-il ; «\u00a0Où est l’été\u00a0?\u00a0» « À L’ÉCOLE » l’à\u00a0»-peu-près, voilà\u00a0», déjà…",
    "«CAFÉ» «DÉJÀ» À… É» “CAFÉ” ‘É’ É™ Ö– Ü—",
    "“A IRMÔ disse: NÃO, AMANHûÃO… “MÔ “AVÓ” Ã e Õ são vogais nasais.",
    "Română: „Pâinea” și „mâine” — în câmp… ÎNTÂI» MÂ”NA",
    "Tiếng Việt: TÂN, CÂU, “Â” là chữ cái; cần, ấn, Ẩn, HÃNG ÂU…",
    "Größe, Straße, „ÄÖÜ“, ÜBER, Äpfel – ‚so‘ – »Ja«, Ähm…",
    "Íslenska: það er gott, ð, þú, Þór; “það”, ‘við’, maður…",
    "Español: ¿Qué? ¡Ñandú! «SEÑ» ESPAÑA… “AÑO” ª º",
    "Türkçe: âşık, kâğıt, hâlâ… “hâlâ” ‘hâlâ’ İĞŞ",
    "Svenska: Å– Å» “PÅ” åäö ÅÄÖ, Dansk: “SMØRREBRØD” æøå",
    "Русский: «Привет» — это… №5; Українська: ґрунт “їжа”; Ελληνικά: «Καλημέρα»· έ…",
    "中文：“你好”，《书》……（一）；日本語「こんにちは」・カタカナー；한국어 안녕",
    'العربية: «مرحبا»، كيف؟ עברית: "שלום"; हिन्दी: नमस्ते; ไทย: สวัสดี',
    "Code: x = a[i]; print('€'); ∑ √2 ≤ π → ∞ ✓ ★ 😀 👩‍💻",
    "Polski: Zażółć gęślą jaźń „Łódź” Čeština: Příliš žluťoučký kůň „Š“",
]

BROKEN = [
    "It’s fine", "“quoted”", "a – b", "wait…", "café", "naïve", "à la carte", "30 °C", "£5", "© 2024", "a\u00a0b",
    "→ next", "✓ done", "™", "😀", "👍 good", "Привет", "Ελληνικά", "你好", "こんにちは", "한국어", "สวัสดี", "Größe",
    "mañana", "São Paulo",
]  # fmt: skip


def read_wrongly(text: str, encoding: str) -> str:
    """UTF-8 taken for something else; bytes that it lacks come out as the control characters of their number."""
    return "".join(_letter(byte, encoding) for byte in text.encode())


def _letter(byte: int, encoding: str) -> str:
    try:
        return bytes([byte]).decode(encoding)
    except UnicodeDecodeError:
        return chr(byte)


@pytest.mark.parametrize("text", GOOD)
def test_languages_are_no_mojibake(text: str) -> None:
    assert not is_mojibake(text)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize("text", BROKEN)
def test_utf_8_read_as_something_else_is(text: str, encoding: str) -> None:
    assert not is_mojibake(text)
    assert is_mojibake(read_wrongly(text, encoding))


def test_mac_roman() -> None:
    assert is_mojibake(read_wrongly("It’s “fine” – yes…", "mac_roman"))


@given(st.text(st.characters(max_codepoint=0x7F)))
def test_ascii_is_no_mojibake(text: str) -> None:
    assert not is_mojibake(text)


@given(st.text())
def test_control_characters(text: str) -> None:
    wanted = any((ord(c) < 32 and c not in "\0\t\n\r") or 0x7F <= ord(c) < 0xA0 for c in text)
    assert has_control_characters(text) == wanted


@pytest.mark.parametrize(
    ("look", "found", "others"),
    [
        (
            spells_special_token,
            ["a <|im_end|> b", "</s>", "[INST] hi [/INST]", "<end_of_turn>", "<｜Assistant｜>"],
            ["a <b>bold</b> [link](x) if a <| b |> c", "List[int] < 3", "<strong>"],
        ),
        (
            begins_with_header,
            ["Assistant: Yes.", "\n assistant : yes", "### Response:\nYes", "<|im_start|>assistant\nYes",
             "<start_of_turn>model\nYes"],
            ["The Assistant: a play", "Assistants are people.", "### Responses to the critics"],
        ),
        (
            goes_on_with_a_turn,
            ["Yes.\n\nHuman: And?", "Yes.\n### Instruction: more", "Yes<|im_start|>user\nmore"],
            ["\n\nHuman: no", "Human: no", "The\nHuman: no"],  # at the beginning it is another matter
        ),
    ],
)  # fmt: skip
def test_templates_in_texts(look: Callable[[str], bool], found: list[str], others: list[str]) -> None:
    assert [text for text in found if not look(text)] == []
    assert [text for text in others if look(text)] == []


def test_every_text_of_a_pair_is_looked_at() -> None:
    turns = (Message("system", "\x1b[31m"), Message("user", "caf\u00c3\u00a9"))
    pair = PreferencePair(turns, "a\0", "\ufffd </s>", "")
    assert list(trouble_in(pair, own=None)) == ["CHR001", "CHR002", "CHR003", "CHR004", "TOK001", "EOS002"]
    assert "TOK001" not in trouble_in(pair, own=())
    assert list(trouble_in(PreferencePair("p", "fine\t\r\n", "good", ""), own=None)) == []


def test_features_are_counts() -> None:
    text = "# Title\n\n- one, two\n- **three**\n  2. `x`\nSee https://a.b? Wow!"
    counts = {name: round(float(np.expm1(value))) for name, value in zip(FEATURES, surface_features(text), strict=True)}
    wanted = {
        "characters": len(text),
        "lines": 5,
        "list items": 3,
        "code marks": 2,
        "refusal openers": 0,
        "eager openers": 0,
    }
    assert counts == dict.fromkeys(FEATURES, 1) | wanted


@pytest.mark.parametrize(
    ("text", "refusal", "eager"),
    [
        ("I'm sorry, but I can't", 1, 0),
        ("I’m really sorry", 1, 0),
        ("As an AI language model", 1, 0),
        ("I cannot help", 1, 0),
        ("Sure! Here is", 0, 1),
        ("Certainly, yes", 0, 1),
        ("Surely not", 0, 0),
        ("Ice cream", 0, 0),
    ],
)
def test_openers(text: str, refusal: int, eager: int) -> None:
    found = dict(zip(FEATURES, surface_features(text), strict=True))
    assert (found["refusal openers"] > 0, found["eager openers"] > 0) == (bool(refusal), bool(eager))
