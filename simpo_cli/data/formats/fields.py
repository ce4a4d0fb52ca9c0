"""The fields of a record: how one is found, what its name consists of, and how values are compared and shown."""

import difflib
import functools
import json
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

from simpo_cli.data.json_records import whole_value
from simpo_cli.data.raw import RecordError

Records = Sequence[Mapping[str, Any]]

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
        near = nearest(field, record)
        hint = f"Did you mean {field} where it says {near}? " if near else ""
        raise RecordError(f"{field} is missing", hint + SKIP)
    if value is None:
        raise RecordError(f"{field}: expected text or messages, got null", SKIP)
    return value


def from_json(text: str, field: str) -> Any:
    """What a field holds as JSON text.

    Raises:
        RecordError: the text is not JSON.
    """
    try:
        return whole_value(text)
    except json.JSONDecodeError:
        raise RecordError(f"{field}: the text is not JSON", SKIP) from None
    except RecordError as error:
        raise RecordError(f"{field}: {error.problem}", SKIP) from None


def nearest(field: str, record: Mapping[str, Any]) -> str | None:
    """The field of a record whose name is most like this one."""
    keys = [key for key in record if isinstance(key, str)]
    near = [key for key in keys if folded(key) == folded(field)]
    return next(iter(near or difflib.get_close_matches(field, keys, n=1, cutoff=0.8)), None)


# Names


def folded(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "").replace(" ", "")


def leaf(field: str) -> str:
    """The last step of a name with dots."""
    return field.rpartition(".")[2]


@functools.lru_cache(maxsize=4096)
def words_of(name: str) -> tuple[str, ...]:
    """The words of a name: `responseA_score1` is response, a, score, 1."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+", name))


def word_set(words: str) -> frozenset[str]:
    """The words of a text, for tables of names."""
    return frozenset(words.split())


def column_of(fields: Sequence[str]) -> str | list[str]:
    """Fields as `columns` writes them."""
    return fields[0] if len(fields) == 1 else list(fields)


# Values


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, an empty text or a NaN."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def is_turn(value: Any) -> bool:
    """Whether a value is one turn of a conversation, going by its keys."""
    return isinstance(value, dict) and ("role" in value or "from" in value)


def as_text(value: Any) -> str:
    """A value as text to compare: 1, 1.0, "1" and "1.0" are one, as are true and "True", A and a."""
    return re.sub(r"(?<=^\d)\.0+$", "", str(value).strip().casefold())


def as_number(value: Any) -> float | None:
    """A finite number, also one that is written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | numbers.Number):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (ValueError, OverflowError, TypeError):
        return None
    return number if math.isfinite(number) else None


def numbers_in(values: Sequence[Any]) -> bool:
    """Whether some of the values are numbers, and all of them numbers or nothing."""
    held = [value for value in values if value is not MISSING and not is_empty(value)]
    return bool(held) and all(as_number(value) is not None for value in held)


def shown_value(value: Any) -> str:
    """A value as messages show it."""
    if isinstance(value, bool):
        return str(value).lower()
    text = "null" if value is None else str(value)
    return text if len(text) <= 30 else text[:30] + "..."
