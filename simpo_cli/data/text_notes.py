"""What a pair's texts show of how the file was made: a prompt repeated in the answers, another template's markers.

None of it stops a run, and none of it may be trained on without a word: training counts it on its first screen, and
`simpo stats` shows the pairs. Each kind has the code of the finding that tells its story.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

from simpo_cli.data.messages import MESSAGE_AS_TEXT
from simpo_cli.data.pair import PreferencePair, RecordNote

if TYPE_CHECKING:
    from simpo_cli.data.tokenizer import TextTokenizer  # counting words needs no tokenizer library

_UNSPACED = re.compile(
    r"[\u0e01-\u0e5b\u0e81-\u0edf\u0f00-\u0fff"  # Thai, Lao, Tibetan
    r"\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf"  # Myanmar, Khmer, Tai Le and New Tai Lue, Tai Tham
    r"\u3005-\u3007\u3041-\u30ff\u3105-\u312f\u31a0-\u31ff"  # marks and the zero of Han, Kana, Bopomofo, both extended
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han, also for compatibility and extended
    r"\ua000-\ua4cf\ua980-\ua9ff\uaa60-\uaadf\uff66-\uff9f]+"  # Yi, Javanese to Tai Viet, Katakana of half width
)

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


END_TOKENS = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end_of_turn|>",
    "<|endofturn|>", "<|END_OF_TURN_TOKEN|>", "<|end|>", "<|return|>", "<|user_end|>", "<end_of_turn>",
    "<turn|>", "[|endofturn|]", "<｜end▁of▁sentence｜>", "</s>", "<eos>",
)  # fmt: skip
"""End tokens that are widely used."""

TURN_MARKERS = (
    "<|im_start|>", "<|start_header_id|>", "<|begin_of_text|>", "<|startoftext|>", "<|start_of_role|>",
    "<|START_OF_TURN_TOKEN|>", "<|system|>", "<|user|>", "<|assistant|>", "<|start|>", "<|turn>",
    "<start_of_turn>", "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<<SYS>>", "[INST]",
    "[/INST]", "[|user|]", "[|assistant|]",
)  # fmt: skip
"""What widely used templates write in front of turns."""

HEADINGS = tuple(
    f"### {name}:" for name in ("Instruction", "Input", "Response", "Human", "User", "Assistant", "System")
)
"""What templates without special tokens write at the beginning of a line."""

_LEADS = ("<", "[INST]", "[/INST]", "[|")
_MISSING = frozenset({"NaN", "nan", "None", "null", "Null", "NULL", "<NA>", "NaT"})  # not "none", as people write it
_LONGEST_MISSING = 12  # characters, white space around it included

_KEYS = tuple(re.compile(rf"""['"](?:{names})['"]\s*:""") for names in ("role|from", "content|value"))

_FEWEST_WORDS, _FEWEST_UNSPACED = 3, 5
"""Of a prompt whose repetition says something: two answers to "Hi there" may well begin with "Hi there"."""
_LONGEST_OPENING = 80  # characters of headers in front of a repeated prompt
_OPENING = re.compile(
    r"(?:[\W_]|human|user|instruction|question|prompt|input|query|problem|inst|im_start|start_header_id|end_header_id"
    r"|begin_of_text|start_of_turn|s|q|bos|人类|用户|问题|问|指令)*",
    re.IGNORECASE,
)
_WORD = re.compile(r"\S+")
_ANSWER_HEADER = re.compile(
    r"\s*(?:(?:\[/INST\]|<\|im_end\|>|<\|eot_id\|>|<end_of_turn>)\s*)?"
    r"(?:<\|im_start\|>assistant|<\|start_header_id\|>assistant<\|end_header_id\|>|<start_of_turn>model"
    r"|(?:###? ?)?(?:assistant|response|answer)\s*:)?\s*",
    re.IGNORECASE,
)


def own_markers(tokenizer: "TextTokenizer", *, rendered: bool) -> tuple[str, ...]:
    """The markers that are not worth telling with this tokenizer: they are its own, or there is no other template.

    Its own special tokens are counted by the encoder. An end token of its own is worth telling all the same, as text in
    front of the real one, unless the texts are rendered already and it is the real one.

    Args:
        rendered: whether special tokens in the texts are read as such (data.rendered).
    """
    sought = (*TURN_MARKERS, *(END_TOKENS if rendered else ()))
    own = [marker for marker in sought if tokenizer.has_special_literal(marker)]
    return (*own, *(() if tokenizer.has_template else HEADINGS))


def notes_of(pair: PreferencePair, own: tuple[str, ...] = ()) -> Iterator[RecordNote]:
    """What a pair's texts show, each once; the markers `own` are not looked for (see `own_markers`)."""
    prompts = [pair.prompt] if isinstance(pair.prompt, str) else [turn.content for turn in pair.prompt]
    answers = (pair.chosen, pair.rejected)
    ends, marks, headings = _sought(own)
    if any(len(text) <= _LONGEST_MISSING and text.strip() in _MISSING for text in (*answers, *prompts)):
        yield RecordNote.MISSING_WORD
    # </s> behind <s> is HTML, a line through a text
    spelled = ((end, answer) for answer in filter(may_hold_marker, answers) for end in ends if end in answer)
    if any(end != "</s>" or "<s>" not in answer for end, answer in spelled):
        yield RecordNote.END_TOKEN
    if any(map(is_message, answers)):
        yield RecordNote.MESSAGE_AS_JSON
    if repeated_prompts(pair) is not None:
        yield RecordNote.REPEATED_PROMPT
    if any(_holds(text, marks, headings) for text in (*answers, *prompts)):
        yield RecordNote.OTHER_TEMPLATE


@cache
def _sought(own: tuple[str, ...]) -> tuple[Sequence[str], Sequence[str], re.Pattern[str] | None]:
    """End tokens, turn markers and a pattern of headings, without those that are not looked for."""
    names = [re.escape(heading[:-1]) for heading in HEADINGS if heading not in own]
    headings = re.compile(rf"^(?:{'|'.join(names)})\s*:", re.MULTILINE) if names else None
    ends, marks = ([one for one in table if one not in own] for table in (END_TOKENS, TURN_MARKERS))
    return ends, marks, headings


def may_hold_marker(text: str) -> bool:
    """Whether a text has what every end token and turn marker has; it is looked for much faster than they are."""
    return any(lead in text for lead in _LEADS)


def _holds(text: str, marks: Sequence[str], headings: re.Pattern[str] | None) -> bool:
    if headings is not None and "### " in text and headings.search(text) is not None:
        return True
    return may_hold_marker(text) and any(mark in text for mark in marks)


def is_message(answer: str) -> bool:
    """Whether an answer is the text of a message with its role, as JSON or as Python shows it, or of a list of such."""
    if MESSAGE_AS_TEXT.match(answer) is None or not answer.rstrip().endswith(("}", "]")):
        return False
    return all(key.search(answer) is not None for key in _KEYS)


def repeated_prompts(pair: PreferencePair) -> tuple[int, int] | None:
    """Where the answers proper begin behind a prompt that both of them repeat; None where they do not.

    Both must begin with the first turn or the last one by the user, to the letter but for white space and headers such
    as `Human:` in front of it. A greeting of one or two words says nothing.
    """
    if isinstance(pair.prompt, str):
        texts = [pair.prompt]
    else:
        users = [turn.content for turn in pair.prompt if turn.role == "user"]
        texts = [*users[-1:], *users[:1], pair.prompt[0].content]
    for text in dict.fromkeys(map(str.strip, texts)):
        if len(text.split()) >= _FEWEST_WORDS or num_unspaced(text[:_LONGEST_OPENING]) >= _FEWEST_UNSPACED:
            ends = _end_of(text, pair.chosen), _end_of(text, pair.rejected)
            if min(ends) >= 0:
                return ends
    return None


def _found_by_words(text: str, answer: str) -> tuple[int, int]:
    """Where a text begins and ends in an answer that has other white space between its words; or -1."""
    first = text.split(maxsplit=1)[0]
    start = answer.find(first, 0, len(first) + _LONGEST_OPENING)
    if start < 0:
        return -1, -1
    words = _WORD.finditer(answer, start)
    end = start
    for wanted in _WORD.finditer(text):
        word = next(words, None)
        if word is None or not word[0].startswith(wanted[0]) or end < start:
            return -1, -1
        # only the last word may go on, such as with the answer behind a colon
        end = word.start() + len(wanted[0]) if len(word[0]) == len(wanted[0]) or wanted.end() == len(text) else -1
    return (start, end) if end >= 0 else (-1, -1)


def _end_of(text: str, answer: str) -> int:
    """Where a text that an answer begins with ends in it, the header of the answer proper included; or -1."""
    start = answer.find(text, 0, len(text) + _LONGEST_OPENING)
    end = start + len(text)
    if start < 0:
        start, end = _found_by_words(text, answer)
    if start < 0 or (start > 0 and _OPENING.fullmatch(answer, 0, start) is None):
        return -1
    if answer[end - 1].isalnum() and answer[end : end + 1].isalnum() and answer[end].isascii():
        return -1  # in the middle of a word
    header = _ANSWER_HEADER.match(answer, end)
    assert header is not None, "it matches nothing as well"
    return header.end()
