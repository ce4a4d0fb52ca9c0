"""Values that a recipe took from the environment, and texts that do not tell them. Imports nothing of ours.

A recipe may say `${oc.env:SCRATCH}/prefs.jsonl`. The value is used, and what is kept and shown goes on saying what the
recipe says: whatever leaves the program, be it a file, a stream or a traceback, is passed through `redacted` first.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

SHORTEST = 6
"""Characters that a value has at least to be recognised in other text: shorter ones would be found in every word."""
_SHORTEST_PART = 8

_taken: dict[str, str] = {}  # the value as it may be spelled, to the words of the recipe


def remember(name: str, value: str) -> None:
    """Take a value for one that no text may tell; numbers and what is too short to be recognised are left aside."""
    for spelled in _spellings(value):
        if len(spelled) >= SHORTEST and not _is_number(spelled):
            _taken[spelled] = f"${{oc.env:{name}}}"


def forget() -> None:
    """Begin anew, with nothing to hide."""
    _taken.clear()


def redacted(text: str) -> str:
    """The text with the words of the recipe in place of every value of the environment."""
    if not _taken or not any(value in text for value in _taken):
        return text
    longest_first = sorted(_taken, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), lambda found: _taken[found[0]], text)


def redacted_values(document: Any) -> Any:
    """A JSON document with each of its texts redacted; its keys are ours and stay."""
    match document:
        case str():
            return redacted(document)
        case dict():
            return {key: redacted_values(value) for key, value in document.items()}
        case list() | tuple():
            return [redacted_values(value) for value in document]
        case _:
            return document


def told_apart(text: str) -> str:
    """The text redacted, and where that changed it with a digest behind it, so that another value reads otherwise."""
    shown = redacted(text)
    return text if shown == text else f"{shown} (sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]})"


def _spellings(value: str) -> Iterator[str]:
    """The value, and what becomes of it in messages: quoted, as JSON, and of a path also its whole form and its parts.

    A part of a path counts where it is long and no mere word, so that `checkpoints` stays readable everywhere.
    """
    paths = [value]
    if "/" in value or value.startswith("~"):
        whole = os.path.abspath(os.path.expanduser(value))
        paths += [str(PurePath(value)), os.path.expanduser(value), whole, os.path.realpath(whole)]
        parts = PurePath(whole).parts
        paths += [part for part in parts if len(part) >= _SHORTEST_PART and not part.isalpha()]
    for path in paths:
        yield path
        yield repr(path)[1:-1]
        yield json.dumps(path)[1:-1]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
