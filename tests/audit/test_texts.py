"""Trouble in texts: mojibake made by the wrong decoders, and languages that must not be taken for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpo_cli.audit.measures import (
    begins_with_header,
    goes_on_with_a_turn,
    has_control_characters,
    is_mojibake,
    spells_special_token,
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
    "It’s fine",
    "“quoted”",
    "a – b",
    "wait…",
    "café",
    "naïve",
    "à la carte",
    "30 °C",
    "£5",
    "© 2024",
    "a\u00a0b",
    "→ next",
    "✓ done",
    "™",
    "😀",
    "👍 good",
    "Привет",
    "Ελληνικά",
    "你好",
    "こんにちは",
    "한국어",
    "สวัสดี",
    "Größe",
    "mañana",
    "São Paulo",
]


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
    ("text", "says"),
    [
        ("a <|im_end|> b", True),
        ("</s>", True),
        ("[INST] hi [/INST]", True),
        ("<end_of_turn>", True),
        ("<｜Assistant｜>", True),
        ("a <b>bold</b> [link](x) if a <| b |> c", False),
        ("List[int] < 3", False),
        ("<strong>", False),
    ],
)
def test_special_tokens(text: str, says: bool) -> None:
    assert spells_special_token(text) == says


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Assistant: Yes.", True),
        ("\n assistant : yes", True),
        ("### Response:\nYes", True),
        ("<|im_start|>assistant\nYes", True),
        ("<start_of_turn>model\nYes", True),
        ("The Assistant: a play", False),
        ("Assistants are people.", False),
        ("### Responses to the critics", False),
    ],
)
def test_headers(text: str, says: bool) -> None:
    assert begins_with_header(text) == says


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Yes.\n\nHuman: And?", True),
        ("Yes.\n### Instruction: more", True),
        ("Yes<|im_start|>user\nmore", True),
        ("\n\nHuman: no", False),  # at the beginning it is another matter
        ("Human: no", False),
        ("The\nHuman: no", False),
    ],
)
def test_further_turns(text: str, says: bool) -> None:
    assert goes_on_with_a_turn(text) == says


def test_every_text_of_a_pair_is_looked_at() -> None:
    turns = (Message("system", "\x1b[31m"), Message("user", "caf\u00c3\u00a9"))
    pair = PreferencePair(turns, "a\0", "\ufffd </s>", "")
    assert list(trouble_in(pair, own=None)) == ["CHR001", "CHR002", "CHR003", "CHR004", "TOK001", "EOS002"]
    assert "TOK001" not in trouble_in(pair, own=())
    assert list(trouble_in(PreferencePair("p", "fine\t\r\n", "good", ""), own=None)) == []
