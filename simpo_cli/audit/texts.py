"""Trouble that a text shows without a tokenizer: broken characters, and the template's business inside an answer."""

import re
from collections.abc import Iterator

from simpo_cli.data.load import prompt_messages
from simpo_cli.data.pair import PreferencePair

# Bytes of control characters that are neither NUL (a finding of its own), tab, newline nor carriage return
_CONTROLS = bytes([*range(0x01, 0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F])
_C1 = re.compile("[\x80-\x9f]")

# Mojibake: UTF-8 read as Windows-1252 or Latin-1. A byte 0x80 to 0xBF, which continues a letter, comes out as one of
# these; of them, what also closes or joins words is held apart.
_CLOSING = "‘’“”„‚‹›«»…–—•"
_SIGNS = "\x80-\x9f€ƒ†‡ˆ‰ŠŒŽ˜™šœžŸ¡-ª¬-º¼-¿"
_CONTINUED = _SIGNS + _CLOSING
_LETTER = f"[Â-ß][{_CONTINUED}]|[à-ï][{_CONTINUED}\xa0]{{2}}|[ð-ô][{_CONTINUED}\xa0]{{3}}"
_MOJIBAKE = re.compile(
    # Latin letters and signs (Ã©, Â£, Â with a no-break space); a closing sign only where no capital or opening mark
    # stands in front, for "IRMÃ”" is a word in capitals
    f"[ÂÃ][{_SIGNS}]|(?<![A-ZÀ-Þ“„‘«])[ÂÃ][{_CLOSING}\xa0]"
    # punctuation, arrows and signs, which are U+2000 to U+27FF (â€™, â†’, âœ“)
    f"|â[\x80-\x9f€ƒ„‚…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ][{_CONTINUED}\xa0]"
    f"|ð[Ÿ\x9f][{_CONTINUED}\xa0]{{2}}"  # emoji
    "|ï»¿"  # a byte order mark
    # other scripts, two letters or more in a row: one alone may be the end of a word and its quotation mark
    f"|(?:{_LETTER}){{2,}}"
    "|‚Ä[ôòúùìî¶¢]"  # quotation marks and dashes read as Mac Roman
)

# Special tokens that are widely used, for audits without a tokenizer
_SPECIAL = re.compile(
    r"<\|[a-zA-Z_]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|<｜[^｜<>]{1,40}｜>"
)

_HEADER = re.compile(
    r"\s*(?:assistant\s*:|### ?(?:response|assistant)\s*:|<\|(?:assistant|im_start|start_header_id)\|>"
    r"|<start_of_turn>model|\[/INST\])",
    re.IGNORECASE,
)
_NEXT_TURNS = (
    "\n\nHuman:",
    "\n\nUser:",
    "\n\nAssistant:",
    "\n### Instruction",
    "\n### Human",
    "\n### User",
    "<|im_start|>user",
    "<|start_header_id|>user",
    "<start_of_turn>user",
)


def is_mojibake(text: str) -> bool:
    """Whether a text holds letters that came out of the wrong decoder.

    Sequences count that decode, as UTF-8, to punctuation, signs, Latin letters or emoji, and runs of two letters or
    more of any other script. `à »` and `É»`, which decode too, are French.
    """
    return not text.isascii() and _MOJIBAKE.search(text) is not None


def has_control_characters(text: str) -> bool:
    """Whether a text holds a control character other than tab, newline, carriage return and NUL."""
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw.translate(None, _CONTROLS)) != len(raw):
        return True
    return b"\xc2" in raw and _C1.search(text) is not None


def spells_special_token(text: str) -> bool:
    """Whether a text spells out a special token that is widely used."""
    return ("<" in text or "[" in text) and _SPECIAL.search(text) is not None


def begins_with_header(response: str) -> bool:
    """Whether a response begins with the header of its own turn."""
    return _HEADER.match(response) is not None


def goes_on_with_a_turn(response: str) -> bool:
    """Whether a response holds the header of a further turn behind its beginning."""
    start = len(response) - len(response.lstrip())
    return any(response.find(header, start) > start for header in _NEXT_TURNS)


def trouble_in(pair: PreferencePair, *, special_tokens: bool) -> Iterator[str]:
    """The codes of what a pair's texts show, each once.

    Args:
        pair: as the file has it.
        special_tokens: look for the special tokens that are widely used; a tokenizer knows its own.
    """
    responses = (pair.chosen, pair.rejected)
    texts = (*responses, *(turn.content for turn in prompt_messages(pair.prompt)))
    if any("\0" in text for text in texts):
        yield "CHR001"
    if any(map(has_control_characters, texts)):
        yield "CHR002"
    if not all(map(str.isascii, texts)):
        if any(map(is_mojibake, texts)):
            yield "CHR003"
        if any("\ufffd" in text for text in texts):
            yield "CHR004"
    if special_tokens and any(map(spells_special_token, texts)):
        yield "TOK001"
    if any(map(begins_with_header, responses)):
        yield "TPL001"
    if any(map(goes_on_with_a_turn, responses)):
        yield "TPL002"
