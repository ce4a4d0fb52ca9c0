"""What the texts of pairs show by themselves, measured batch by batch: each pair alone, whatever the others are.

So it does not matter which process measures a batch, or when. A text shows its words, broken characters, the template's
business inside an answer, and the surface that needs no understanding, such as its length, lists, bold and code.
"""

import math
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import xxhash
from numpy.typing import NDArray

from simpo_cli.audit.signatures import SIGNATURE_BYTES, Hashes, Signatures, signatures_of
from simpo_cli.data.pair import PreferencePair, prompt_messages
from simpo_cli.data.text_notes import END_TOKENS, TURN_MARKERS, may_hold_marker, notes_of, num_letters, num_unspaced

Differences = NDArray[np.float32]

_LIST_ITEM = re.compile(r"\n[ \t]*(?:[-*•+]|\d{1,2}[.)])[ \t]")
_HEADING = re.compile(r"\n#{1,6} ")
_REFUSAL = re.compile(
    r"\s*(?:(?:i[’']?m|i am) (?:so |very |really )?sorry|sorry|i apologi[sz]e|i (?:can|won)[’']t|i cannot|i will not"
    r"|(?:i[’']?m|i am) (?:not able|unable)|unfortunately|as an ai\b)",
    re.IGNORECASE,
)
_EAGER = re.compile(
    r"\s*(?:sure|certainly|of course|absolutely|definitely|great|yes|here[’']s|here (?:is|are))\b", re.IGNORECASE
)
_ENDS = (".", "!", "?", "…", "。", "！", "？", ")", '"', "”", "'", "`", "*")

FEATURES = (
    "characters",
    "lines",
    "paragraphs",
    "list items",
    "headings",
    "bold phrases",
    "code marks",
    "links",
    "commas",
    "questions",
    "exclamations",
    "refusal openers",
    "eager openers",
    "sentence ends",
)
"""What is counted, in the order of the columns."""


def surface_features(response: str) -> list[float]:
    """log(1 + count) of each of FEATURES: twice as many list items weigh the same among few as among many."""
    count = response.count  # whether a letter is there at all is known much faster than how often anything is
    num_lines, lines = count("\n"), "\n" + response  # with a newline in front, where a line's beginning can be found
    counts = (
        len(response),
        num_lines,
        count("\n\n") if num_lines else 0,
        len(_LIST_ITEM.findall(lines)) if num_lines else 0,
        len(_HEADING.findall(lines)) if "\n#" in lines else 0,
        count("**") // 2 if "*" in response else 0,
        count("`") if "`" in response else 0,
        count("://") if "/" in response else 0,
        count(","),
        count("?") if "?" in response else 0,
        count("!") if "!" in response else 0,
        _REFUSAL.match(response) is not None,
        _EAGER.match(response) is not None,
        response.rstrip().endswith(_ENDS),
    )
    return list(map(math.log1p, counts))


def surface_differences(responses: Iterable[tuple[str, str]]) -> Differences:
    """(pairs, features) what the chosen response has more of than the rejected one, 4 bytes a feature."""
    rows = (map(operator.sub, surface_features(chosen), surface_features(rejected)) for chosen, rejected in responses)
    return np.fromiter(chain.from_iterable(rows), dtype=np.float32).reshape(-1, len(FEATURES))


# Bytes of control characters that are neither NUL (a finding of its own), tab, newline nor carriage return
_CONTROLS = bytes([*range(0x01, 0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F])
_C1 = re.compile("[\x80-\x9f]")
_BLANK_OR_NOT = bytes(ord(" ") if chr(byte).isspace() else ord("x") for byte in range(256))

# Mojibake: UTF-8 read as Windows-1252 or Latin-1. A byte 0x80 to 0xBF, which continues a letter, comes out as one of
# these; of them, what also closes or joins words is held apart.
_CLOSING = "‘’“”„‚‹›«»…–—•"
_SIGNS = "\x80-\x9f€ƒ†‡ˆ‰ŠŒŽ˜™šœžŸ¡-ª¬-º¼-¿"
_CONTINUED = _SIGNS + _CLOSING
_CANDIDATE = re.compile(f"[Â-ô][{_CONTINUED}\xa0]")  # found fast; what is no more than this is no mojibake yet
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
_SPECIAL = re.compile(r"<\|[a-zA-Z_]{1,40}\|>|<｜[^｜<>]{1,40}｜>")
_NAMED = (*(one for one in (*END_TOKENS, *TURN_MARKERS) if not _SPECIAL.search(one)), "<s>", "<bos>", "<pad>", "<unk>")

_HTML_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,5}|#x[0-9a-fA-F]{2,4});")

_HEADER = re.compile(
    r"\s*(?:assistant\s*:|### ?(?:response|assistant)\s*:|<\|(?:assistant|im_start|start_header_id)\|>"
    r"|<start_of_turn>model|\[/INST\])",
    re.IGNORECASE,
)
_NEXT_TURN = re.compile(r"\n(?:\n(?:Human|User|Assistant):|### ?(?:Instruction|Human|User)\b)")
_NEXT_TURN_TOKENS = re.compile(r"<(?:\|im_start\|>|\|start_header_id\|>|start_of_turn>)user")


def num_words(text: str) -> int:
    """Words as people count them: what stands between blanks."""
    if not text.isascii():
        return len(text.split())
    kinds = text.encode().translate(_BLANK_OR_NOT)  # twice as fast: no word becomes an object
    return kinds.count(b" x") + kinds.startswith(b"x")


def prompt_text(pair: PreferencePair) -> str:
    """The prompt's turns one after the other, without their roles."""
    return "\n".join(turn.content for turn in prompt_messages(pair.prompt))


def asked_text(pair: PreferencePair) -> str:
    """The prompt's turns but the system's, by which near prompts are known."""
    return "\n".join(turn.content for turn in prompt_messages(pair.prompt) if turn.role != "system")


def is_mojibake(text: str) -> bool:
    """Whether a text holds letters that came out of the wrong decoder.

    Sequences count that decode, as UTF-8, to punctuation, signs, Latin letters or emoji, and runs of two letters or
    more of any other script. `à »` and `É»`, which decode too, are French.
    """
    if text.isascii() or (_CANDIDATE.search(text) is None and "‚Ä" not in text):
        return False
    return _MOJIBAKE.search(text) is not None


def has_control_characters(text: str) -> bool:
    """Whether a text holds a control character other than tab, newline, carriage return and NUL."""
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw.translate(None, _CONTROLS)) != len(raw):
        return True
    return b"\xc2" in raw and _C1.search(text) is not None


def spells_special_token(text: str) -> bool:
    """Whether a text spells out a special token that is widely used."""
    return may_hold_marker(text) and (any(name in text for name in _NAMED) or _SPECIAL.search(text) is not None)


def begins_with_header(response: str) -> bool:
    """Whether a response begins with the header of its own turn."""
    return _HEADER.match(response) is not None


def goes_on_with_a_turn(response: str) -> bool:
    """Whether a response holds the header of a further turn behind its beginning."""
    start = len(response) - len(response.lstrip()) + 1
    if _NEXT_TURN.search(response, start) is not None:
        return True
    return "<" in response and _NEXT_TURN_TOKENS.search(response, start) is not None


def trouble_in(pair: PreferencePair, *, own: tuple[str, ...] | None) -> Iterator[str]:
    """The codes of what a pair's texts show, each once; `own` as for `measure`."""
    responses = (pair.chosen, pair.rejected)
    # one text for all: nothing that is looked for in it goes over the end of a line
    text = "\n".join((*responses, prompt_text(pair)))
    if "\0" in text:
        yield "CHR001"
    if has_control_characters(text):
        yield "CHR002"
    if is_mojibake(text):
        yield "CHR003"
    if "\ufffd" in text:
        yield "CHR004"
    if "&" in text and _HTML_ENTITY.search(text) is not None:
        yield "CHR005"
    if own is None and spells_special_token(text):
        yield "TOK001"
    if any(map(begins_with_header, responses)):
        yield "TPL001"
    if any(map(goes_on_with_a_turn, responses)):
        yield "TPL002"
    yield from (note.finding for note in notes_of(pair, own or ()))


def _hashed(text: str, seed: int = 0) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"), seed)


def prompt_hash(pair: PreferencePair) -> int:
    """A hash of the prompt; plain text and the same text as one user turn are the same prompt."""
    turns = prompt_messages(pair.prompt)
    return _hashed("".join([f"{turn.role} {len(turn.content)} {turn.content}" for turn in turns]))


def pair_hashes(pair: PreferencePair) -> tuple[int, int, int]:
    """Hashes of the prompt, the chosen and the rejected response.

    With other tools, or other variables for the template, the same response is another.
    """
    beside = (pair.tools, pair.template_kwargs)
    around = 0 if beside == (None, None) else _hashed(repr(beside))
    return prompt_hash(pair), _hashed(pair.chosen, around), _hashed(pair.rejected, around)


Counts = NDArray[np.int32]

_BEGINNING = 500  # characters of a response, enough to know its script


@dataclass(frozen=True, slots=True)
class TextMeasures:
    """What the texts of n pairs show."""

    codes: Sequence[tuple[str, ...]]  # (n,) the findings that each pair belongs to
    words: Counts  # (n, 3) of prompt, chosen and rejected; all 0 where a tokenizer counts the lengths
    characters: Counts  # the same
    letters: Counts  # (n, 2) of the beginnings of both responses: those of scripts without spaces, and all; 0 likewise
    hashes: Hashes  # (n, 3) of prompt, chosen and rejected
    surface: Differences  # (n, features) what the surface of the two responses differs in
    signatures: Signatures  # (n, 3, 64) of prompt, chosen and rejected


def measure(pairs: Sequence[PreferencePair], *, own: tuple[str, ...] | None) -> TextMeasures:
    """Measure the texts of pairs.

    Args:
        pairs: at least one.
        own: the markers of the tokenizer, which are not looked for (see `own_markers`); it counts the lengths and knows
            its own special tokens. None without one: words and characters are counted, and special tokens that are
            widely used are looked for.
    """
    texts = (text for pair in pairs for text in (asked_text(pair), pair.chosen, pair.rejected))
    counts = np.zeros((len(pairs), 8), dtype=np.int32)
    if own is None:
        counts[:] = [_counts(pair) for pair in pairs]
    return TextMeasures(
        codes=[tuple(trouble_in(pair, own=own)) for pair in pairs],
        words=counts[:, :3],
        characters=counts[:, 3:6],
        letters=counts[:, 6:],
        hashes=np.array([pair_hashes(pair) for pair in pairs], dtype=np.uint64),
        surface=surface_differences((pair.chosen, pair.rejected) for pair in pairs),
        signatures=signatures_of(texts).reshape(-1, 3, SIGNATURE_BYTES),
    )


def _counts(pair: PreferencePair) -> tuple[int, ...]:
    """Words, then characters of prompt, chosen and rejected; then letters, as `TextMeasures` says."""
    responses = (pair.chosen, pair.rejected)
    texts = (prompt_text(pair), *responses)
    beginnings = [text[:_BEGINNING] for text in responses]
    return (
        *map(num_words, texts),
        *map(len, texts),
        sum(map(num_unspaced, beginnings)),
        sum(map(num_letters, beginnings)),
    )
