"""Values of Arrow as the records had them before they became columns.

The columns of a table all have the same keys, so a key that one object lacks comes back with null: inside objects such
nulls are left out. What `datasets` stores as JSON text is JSON again, a map is an object, a decimal a number, and NaN,
with which pandas marks a missing number, is null.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from simpo_cli.data.json_records import whole_value
from simpo_cli.data.raw import RecordError

Convert = Callable[[Any], Any]


def converters(schema: Any) -> dict[str, Convert]:
    """What turns the values of a schema's columns into those of records; columns that need nothing are left out."""
    features = _features(schema.metadata)
    found = {field.name: _converter(field, features.get(field.name)) for field in schema}
    return {name: convert for name, convert in found.items() if convert is not None}


def _features(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """What `datasets` says of its columns."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _converter(field: Any, feature: Any) -> Convert | None:
    """What turns a value of a field into that of a record, or None where it is one already.

    Args:
        field: of Arrow, for its type and for what was kept of a type that this library does not know.
        feature: what `datasets` says of it, if anything.
    """
    from pyarrow import types  # type: ignore[import-untyped]

    kind, feature = field.type, feature if isinstance(feature, dict) else {}
    extension = getattr(kind, "extension_name", (field.metadata or {}).get(b"ARROW:extension:name", b""))
    if extension in ("arrow.json", b"arrow.json") or feature.get("_type") == "Json":
        return _from_json
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_struct(kind):
        inner = {part.name: _converter(part, feature.get(part.name)) for part in kind}
        return _object_of({name: convert for name, convert in inner.items() if convert is not None})
    if types.is_map(kind):
        return _map_of(_converter(kind.item_field, None))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or _is_view(kind):
        return _list_of(_converter(kind.value_field, feature.get("feature")))
    if types.is_decimal(kind):
        return lambda value: value if value is None else int(value) if value == value.to_integral() else float(value)
    if types.is_floating(kind):
        return lambda value: None if value is None or math.isnan(value) else float(value)
    return None


def _is_view(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list_view(kind) or types.is_large_list_view(kind))


def _from_json(value: str | None) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return whole_value(value)
    except json.JSONDecodeError:
        raise RecordError("a value of a JSON column is not JSON", "Write the file again with `datasets`.") from None


def _object_of(inner: Mapping[str, Convert]) -> Convert:
    def convert(value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is None:
            return None
        for key, change in inner.items():
            value[key] = change(value[key])
        return value if None not in value.values() else {key: one for key, one in value.items() if one is not None}

    return convert


def _list_of(inner: Convert | None) -> Convert | None:
    if inner is None:
        return None
    return lambda values: values if values is None else [inner(value) for value in values]


def _map_of(inner: Convert | None) -> Convert:
    def convert(pairs: list[tuple[Any, Any]] | None) -> dict[str, Any] | None:
        if pairs is None:
            return None
        value = {str(key): inner(one) if inner else one for key, one in pairs}
        if len(value) != len(pairs):
            raise RecordError("a map holds a key twice", "Keep one of the two values.")
        return value

    return convert
