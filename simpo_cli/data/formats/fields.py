"""The fields of a record: how one is found, and what is said where it is not there."""

import difflib
from collections.abc import Mapping
from typing import Any

from simpo_cli.data.raw import RecordError

MISSING: Any = object()
"""What a record gives for a field that it does not have; null is a value."""
SCORE_NAMES = ("score", "rating", "reward")
SKIP = "Mend the record, or set data.on_bad_record: skip to leave such records out and count them."


def get(record: Mapping[str, Any], field: str) -> Any:
    """The value of a field; `metadata.score` reaches into objects unless a field has that very name."""
    value: Any = record.get(field, MISSING)
    if value is not MISSING or "." not in field:
        return value
    value = record
    for key in field.split("."):
        if not isinstance(value, dict) or key not in value:
            return MISSING
        value = value[key]
    return value


def required(record: Mapping[str, Any], field: str) -> Any:
    value = get(record, field)
    if value is MISSING:
        raise RecordError(f"{field} is missing", did_you_mean(field, record) + SKIP)
    if value is None:
        raise RecordError(f"{field}: expected text or messages, got null", SKIP)
    return value


def did_you_mean(field: str, record: Mapping[str, Any]) -> str:
    keys = [key for key in record if isinstance(key, str)]
    near = [key for key in keys if folded(key) == folded(field)]
    near = near or difflib.get_close_matches(field, keys, n=1, cutoff=0.8)
    return f"Did you mean {field} where it says {near[0]}? " if near else ""


def folded(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "").replace(" ", "")
