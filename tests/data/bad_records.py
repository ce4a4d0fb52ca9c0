"""Every kind of record that goes wrong, with what becomes of it.

R is refused with a reason, D carries no signal and is dropped by reason, W is accepted and counted, A is accepted.
"""

from dataclasses import dataclass
from typing import Any, Literal

from tests.data.pair_files import GOOD


def turn(role: Any, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


USER, SAID, SAID_ELSE = turn("user", "hi"), turn("assistant", "ho"), turn("assistant", "hu")


@dataclass(frozen=True)
class RecordKind:
    """A record that goes wrong.

    Attributes:
        outcome: R, D, W or A.
        record: the record, or its text or bytes.
        said: what the message says (R), the reason that is counted (D), the warning that is counted (W).
        neighbour: a good record of the same form.
        in_lists: whether it can also stand in a JSON list.
    """

    outcome: Literal["R", "D", "W", "A"]
    record: Any
    said: str = ""
    neighbour: Any = None
    in_lists: bool = True

    def placed(self, place: str) -> list[Any]:
        """The record among good ones: `only`, `first`, `middle` or `last`."""
        good = GOOD if self.neighbour is None else self.neighbour
        return {
            "only": [self.record],
            "first": [self.record, good, good],
            "middle": [good, self.record, good],
            "last": [good, good, self.record],
        }[place]


def good(**fields: Any) -> dict[str, Any]:
    return {**GOOD, **fields}


def without(key: str, **fields: Any) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != key} | fields


def turns(chosen: Any, rejected: Any = None) -> dict[str, Any]:
    return {"chosen": chosen, "rejected": [USER, SAID_ELSE] if rejected is None else rejected}


def deep(levels: int) -> str:
    return '{"prompt": "p", "chosen": "c", "rejected": "r", "x": ' + "[" * levels + "]" * levels + "}"


def _text(prompt: str = '"p"', chosen: str = '"c"', rejected: str = '"r"', more: str = "") -> str:
    """A record as text, for what json.dumps would not write."""
    return f'{{"prompt": {prompt}, "chosen": {chosen}, "rejected": {rejected}{more}}}'


_TURNS = turns([USER, SAID])
_SCORED = good(score_chosen=2, score_rejected=1)


def _refused(record: Any, said: str, **more: Any) -> RecordKind:
    return RecordKind("R", record, said, **more)


def _refused_turns(chosen: Any, said: str, rejected: Any = None) -> RecordKind:
    return RecordKind("R", turns(chosen, rejected), said, neighbour=_TURNS)


def _accepted_turns(chosen: Any, rejected: Any = None) -> RecordKind:
    return RecordKind("A", turns(chosen, rejected), neighbour=_TURNS)


FILE = {
    "NUL byte (in a text)": _refused(_text('"p\0"'), "a NUL byte inside a text"),
    "NUL byte (between)": _refused(_text().replace(", ", ",\0 ", 1), "a NUL byte"),
    "NUL byte (behind)": _refused(_text() + "\0", "a NUL byte", in_lists=False),
    "line break in a text": _refused(_text('"p\x0b"'), "a bare control character"),
    "\\u0000 in text": RecordKind("W", good(chosen="a\0b"), "NUL characters in texts"),
    "invalid UTF-8": _refused(_text('"p CAF"').encode().replace(b"CAF", b"caf\xe9"), "(0xe9)"),
    "invalid UTF-8 (a surrogate's bytes)": _refused(_text('"SUR"').encode().replace(b"SUR", b"\xed\xa0\xbd"), "(0xed)"),
    "lone surrogate": _refused(_text(chosen='"a\\ud83d"'), "chosen: half of a surrogate pair"),
    "lone surrogate (in a list)": _refused(_text(more=', "m": [1, "\\uDC00"]'), "m[1]: half of a surrogate pair"),
    "lone surrogate (in a key)": _refused(_text(more=', "\\udc00": 1'), "a surrogate pair"),
    "U+2028 in a string": RecordKind("A", _text(chosen='"a\u2028b\u0085c"')),
    "single quotes": _refused("{'prompt': 'p', 'chosen': 'c', 'rejected': 'r'}", "single quotes"),
    "comments": _refused(_text(more=", /* why */"), "a comment"),
    "comments (#)": _refused(_text(more=", # why"), "a comment"),
    "trailing comma": _refused(_text(more=","), "a comma before }"),
    "Python's values": _refused(_text(rejected="None"), "a value of Python"),
    "two objects on a line": _refused(_text() + _text(), "two objects on one line", in_lists=False),
    "two objects on a line (apart)": _refused(_text() + " " + _text(), "two objects on one line", in_lists=False),
    "a comma behind the object": _refused(_text() + ",", "a comma behind the object", in_lists=False),
}

JSON = {
    "duplicate key": _refused(_text(more=', "chosen": "d"'), "the key 'chosen' occurs twice"),
    "duplicate key (inside)": _refused(_text(more=', "m": {"a": 1, "a": 2}'), "'a' occurs twice"),
    "record is array": _refused('["p", "c", "r"]', "expected an object, got list"),
    "record is string": _refused('"prompt"', "expected an object, got text"),
    "record is number": _refused("17", "expected an object, got number"),
    "record is null": _refused("null", "expected an object, got null"),
    "depth over 64": _refused(deep(65), "nested more than 64 deep"),
    "depth over 64 (100,000 deep)": _refused(deep(100_000), "nested more than 64 deep"),
    "depth of 64": RecordKind("A", deep(63)),
    "integer of 5,000 digits": _refused(_text(more=f', "n": {"9" * 5000}'), "5,000 digits"),
    "integer of 900 digits": RecordKind("A", _text(more=f', "n": {"9" * 900}')),
    "NaN score": _refused(_text(more=', "score_chosen": NaN'), "NaN is not a value of JSON"),
    "Infinity score": _refused(_text(more=', "score_chosen": -Infinity'), "-Infinity is not"),
    "Infinity score (1e999)": _refused(_text(more=', "score_chosen": 1e999, "score_rejected": 1'), "is no score"),
    "Infinity score (text)": _refused(good(score_chosen="inf", score_rejected=1), "is no score"),
    "bool score": _refused(good(score_chosen=True, score_rejected=1), "score_chosen: expected a number, got true or"),
    'score "4.5"': RecordKind("W", good(score_chosen="4.5", score_rejected=2), "scores written as text"),
    'score "high"': _refused(good(score_chosen="high", score_rejected=2), "expected a number, got text 'high'"),
    "null score": RecordKind("A", good(score_chosen=None, score_rejected=None)),
    "ISO dates": RecordKind("A", good(chosen="2024-01-01")),
}

_DIFFERENT_PROMPTS = "prompts of chosen and rejected differ"
PAIR = {
    "missing key (prompt)": _refused(without("prompt"), "prompt is missing"),
    "missing key (chosen)": _refused(without("chosen"), "chosen is missing"),
    "missing key (rejected)": _refused(without("rejected"), "rejected is missing"),
    "null (prompt)": _refused(good(prompt=None), "prompt: expected text or messages, got null"),
    "null (chosen)": _refused(good(chosen=None), "chosen: expected text or messages, got null"),
    "null (rejected)": _refused(good(rejected=None), "rejected: expected text or messages, got null"),
    "number (prompt)": _refused(good(prompt=4), "prompt: expected text or messages, got number"),
    "number (chosen)": _refused(good(chosen=4.5), "chosen: expected text or messages, got number"),
    "number (rejected)": _refused(good(rejected=0), "rejected: expected text or messages, got number"),
    "list against text": _refused(good(chosen=[SAID]), "chosen is a list and rejected is text"),
    "wrong-case key": _refused(without("chosen", Chosen="c"), "chosen is missing"),
    "extra key": RecordKind("A", good(extra=[{"a": None}])),
    "empty prompt": _refused(good(prompt=""), "prompt is empty"),
    "blank prompt": _refused(good(prompt=" \n\t"), "prompt is empty"),
    "empty chosen": RecordKind("D", good(chosen=""), "empty response"),
    "blank chosen": RecordKind("D", good(chosen="\t"), "empty response"),
    "empty rejected": RecordKind("D", good(rejected=""), "empty response"),
    "blank rejected": RecordKind("D", good(rejected=" \n"), "empty response"),
    "chosen equals rejected": RecordKind("D", good(chosen="It is green."), "identical responses"),
    "score order against label": RecordKind(
        "W", good(score_chosen=1, score_rejected=2), "scores order the pair against its label", _SCORED
    ),
    "tied scores": RecordKind("W", good(score_chosen=2, score_rejected=2.0), "tied scores", _SCORED),
    "prompts that differ between the two sides": _refused_turns([turn("user", "ha"), SAID], _DIFFERENT_PROMPTS),
    "prompts that differ between the two sides (one answer only)": _refused_turns([SAID], _DIFFERENT_PROMPTS),
    "prompts that differ between the two sides (transcripts)": _refused(
        {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: y"},
        _DIFFERENT_PROMPTS,
        neighbour={"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: a\n\nAssistant: y"},
    ),
    "tools nested 100,000 deep as text": _refused(good(tools="[" * 100_000), "tools: lists and objects nested more"),
    "tools that are no JSON": _refused(good(tools="[f]"), "tools: the text is not JSON"),
    "tools that are a number": _refused(good(tools="3"), "tools: the text is no list of tools"),
}

MESSAGES = {
    "empty list": _refused_turns([], "chosen: an empty list of messages"),
    "last turn not assistant": _refused_turns([USER, SAID, USER], "chosen[2]: the last turn is by user"),
    "system not first": _refused_turns([USER, turn("system", "s"), SAID], "chosen[1]: a system turn"),
    "unknown role": _refused_turns([turn("narrator", "x"), SAID], "chosen[0].role: unknown role 'narrator'"),
    "unknown role (a number)": _refused_turns([turn(1, "x"), SAID], "chosen[0].role: expected text, got number"),
    "unknown role (none)": _refused_turns([{"content": "x"}, SAID], "chosen[0]: no role"),
    "content missing": _refused_turns([USER, {"role": "assistant"}], "chosen[1]: no content"),
    "content missing (null)": _refused_turns([USER, turn("assistant", None)], "chosen[1].content: no content"),
    "content is a number": _refused_turns([USER, turn("assistant", 3)], "chosen[1].content: expected text, got number"),
    "message is text": _refused_turns(["hi", SAID], "chosen[0]: expected a message with role and content, got text"),
    "image parts": _refused_turns(
        [turn("user", [{"type": "image_url", "image_url": {}}]), SAID],
        "chosen[0].content[0]: a content part of type 'image_url'",
    ),
    "part without text": _refused_turns(
        [turn("user", [{"type": "text"}]), SAID], "chosen[0].content[0].text: expected"
    ),
    "text parts": _accepted_turns([turn("user", [{"type": "text", "text": "h"}, {"text": "i"}]), SAID]),
    "blank prompt": _refused_turns([turn("user", " "), SAID], "is empty", [turn("user", " "), SAID_ELSE]),
    "tool turns": _accepted_turns([USER, SAID, turn("tool", "{}"), SAID], [USER, SAID, turn("tool", "{}"), SAID_ELSE]),
    "arguments nested 2,000 deep as text": _accepted_turns(
        [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 2_000}}]}]
    ),
}

RECORDS = {
    f"{section}: {name}": kind
    for section, kinds in (("File", FILE), ("JSON", JSON), ("Pair", PAIR), ("Messages", MESSAGES))
    for name, kind in kinds.items()
}
