"""The fields of a record: how one is found, what its name says, and what is said where it is not there."""

import difflib
import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from simpo_cli.data.json_records import whole_value
from simpo_cli.data.raw import RecordError

MISSING: Any = object()
"""What a record gives for a field that it does not have; null is a value."""
SKIP = "Mend the record, or set data.on_bad_record: skip to leave such records out and count them."


def get(record: Mapping[str, Any], field: str) -> Any:
    """The value of a field; `metadata.score`, `notes.0.value` reach inside unless a field has that very name.

    In a list, -1 is the last place."""
    value: Any = record.get(field, MISSING)
    if value is not MISSING or "." not in field:
        return value
    value = record
    for key in field.split("."):
        if isinstance(value, list) and (key.isdecimal() or key == "-1") and int(key) < len(value) != 0:
            value = value[int(key)]
        elif isinstance(value, dict) and key in value:
            value = value[key]
        else:
            return MISSING
    return value


def required(record: Mapping[str, Any], field: str) -> Any:
    value = get(record, field)
    if value is MISSING:
        raise RecordError(f"{field} is missing", did_you_mean(field, record) + SKIP)
    if value is None:
        raise RecordError(f"{field}: expected text or messages, got null", SKIP)
    return value


def from_json(text: str, field: str) -> Any:
    """What a field says whose value may be JSON text.

    Raises:
        RecordError: the text is not JSON.
    """
    try:
        return whole_value(text)
    except json.JSONDecodeError:
        raise RecordError(f"{field}: the text is not JSON", SKIP) from None
    except RecordError as error:
        raise RecordError(f"{field}: {error.problem}", SKIP) from None


def did_you_mean(field: str, record: Mapping[str, Any]) -> str:
    """A sentence where a record spells a field otherwise; empty where none of its fields is like it."""
    near = nearest(field, record)
    return f"Did you mean {field} where it says {near}? " if near else ""


def nearest(field: str, record: Mapping[str, Any]) -> str | None:
    """The field of a record whose name is most like this one."""
    keys = [key for key in record if isinstance(key, str)]
    near = [key for key in keys if folded(key) == folded(field)]
    return next(iter(near or difflib.get_close_matches(field, keys, n=1, cutoff=0.8)), None)


def folded(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "").replace(" ", "")


@functools.lru_cache(maxsize=4096)
def words_of(name: str) -> tuple[str, ...]:
    """The words of a name: `responseA_score1` is response, a, score, 1."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+", name))


def word_set(words: str) -> frozenset[str]:
    """The words of a text, for tables of names."""
    return frozenset(words.split())
