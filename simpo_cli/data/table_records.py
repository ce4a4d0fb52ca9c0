"""Parquet and Arrow to records, with the values that the records had before they became columns.

The columns of a table all have the same keys, so a key that one object lacks comes back with null: inside objects such
nulls are left out. What `datasets` stores as JSON text is JSON again, a map is an object, a decimal a number, and NaN,
with which pandas marks a missing number, is null.

A table that is small on disk and huge in memory is refused by what it says of itself, before it is read. A Parquet file
lists the sizes of its parts. Of an Arrow file each compressed buffer begins with its unpacked size; where the buffers
lie is in the head of their message, which pyarrow does not show, so it is read here (a flatbuffer: tables of offsets,
see Message.fbs of Apache Arrow).
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from typing import Any, BinaryIO, Literal

from simpo_cli.data.csv_records import require_unique, with_messages
from simpo_cli.data.file_bytes import BOMB_BYTES, BOMB_RATIO, FileReceipt, open_regular, require_unchanged
from simpo_cli.data.json_records import whole_value
from simpo_cli.data.pair import RawRecord, RecordError, Records
from simpo_cli.errors import UserError

TableKind = Literal["Parquet", "Arrow"]
Convert = Callable[[Any], Any]


def converters(schema: Any) -> dict[str, Convert]:
    """What turns the values of a schema's columns into those of records; columns that need nothing are left out."""
    try:  # what `datasets` says of its columns
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        features = {}
    features = features if isinstance(features, dict) else {}
    found = {field.name: _converter(field, features.get(field.name)) for field in schema}
    return {name: convert for name, convert in found.items() if convert is not None}


def _converter(field: Any, feature: Any) -> Convert | None:
    """What turns a value of an Arrow field into that of a record, by what `datasets` says of it too; None: nothing."""
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
    are_lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    if any(is_one(kind) for is_one in (*are_lists, types.is_list_view, types.is_large_list_view)):
        return _list_of(_converter(kind.value_field, feature.get("feature")))
    if types.is_decimal(kind):
        return lambda value: value if value is None else int(value) if value == value.to_integral() else float(value)
    if types.is_floating(kind):
        return lambda value: None if value is None or math.isnan(value) else float(value)
    return None


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


_MOST_RECORDS = 1_000_000  # of a file with fewer bytes than records

_HEADER_TYPE, _HEADER, _BUFFERS, _COMPRESSION, _DATA = 1, 2, 2, 3, 1  # fields by their number
_DICTIONARY, _RECORDS = 2, 3  # kinds of messages


def require_plausible(unpacked: int, records: int, size: int, name: str) -> None:
    """Refuse a table whose values unpack to far more bytes than its file holds, or that has far more records."""
    if unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * size:
        problem = f"unpacks to more than {unpacked // 2**20:,} MiB from {size // 1024 + 1:,} KiB, which no text does."
    elif records > _MOST_RECORDS and records > size:
        problem = f"says that it holds {records:,} records in {size:,} bytes."
    else:
        return
    raise UserError(problem, "Look at it with the tool that wrote it, and write it again as JSON lines.", where=name)


def require_plausible_arrow(file: BinaryIO, size: int, name: str) -> None:
    """Refuse an Arrow file, open at its first message, whose compressed buffers say that they are huge."""
    from pyarrow import ipc

    messages, unpacked = ipc.MessageReader.open_stream(file), 0
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return
        unpacked += _unpacked(memoryview(message.metadata), message.body)
        require_plausible(unpacked, 0, size, name)


def _unpacked(head: memoryview, body: Any) -> int:
    """Bytes of the values of one message; 0 where they are not compressed, as they are then no more than the file."""
    message = _follow(head, 0)
    kind = _field(head, message, _HEADER_TYPE)
    if kind is None or head[kind] not in (_DICTIONARY, _RECORDS):
        return 0
    batch = _table(head, message, _HEADER)
    if head[kind] == _DICTIONARY:
        batch = _table(head, batch, _DATA)
    buffers = _field(head, batch, _BUFFERS)
    if buffers is None or _field(head, batch, _COMPRESSION) is None:
        return 0
    vector, bytes_of_body, total = _follow(head, buffers), memoryview(body), 0
    (count,) = struct.unpack_from("<I", head, vector)
    for number in range(count):
        offset, length = struct.unpack_from("<qq", head, vector + 4 + 16 * number)
        if length >= 8:
            (unpacked,) = struct.unpack_from("<q", bytes_of_body, offset)
            total += max(unpacked, length)  # -1 marks a buffer that is left as it is
    return total


def _follow(head: memoryview, place: int) -> int:
    return int(place + struct.unpack_from("<I", head, place)[0])


def _field(head: memoryview, table: int, number: int) -> int | None:
    """The place of a table's field; None where it is left out."""
    listed = table - struct.unpack_from("<i", head, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", head, listed)[0]:
        return None
    offset = struct.unpack_from("<H", head, listed + 4 + 2 * number)[0]
    return int(table + offset) if offset else None


def _table(head: memoryview, table: int, number: int) -> int:
    place = _field(head, table, number)
    if place is None:
        raise struct.error("a message without content")
    return _follow(head, place)


BATCH = 256  # rows turned into Python objects at a time


def read_table(path: str, kind: TableKind, receipt: FileReceipt) -> Records:
    """The rows of a file of columns, a batch at a time; the receipt names the file and gets its hash and size."""
    return with_messages(_rows_of(path, kind, receipt), receipt)


def _parquet_batches(file: BufferedReader, size: int, name: str) -> Iterator[Any]:
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    table = parquet.ParquetFile(file, page_checksum_verification=True)
    unpacked = sum(table.metadata.row_group(i).total_byte_size for i in range(table.metadata.num_row_groups))
    require_plausible(unpacked, table.metadata.num_rows, size, name)
    return iter(table.iter_batches(batch_size=BATCH))


def _arrow_batches(file: BufferedReader, size: int, name: str) -> Iterator[Any]:
    """Of the random access form or of the stream form, which `datasets` writes."""
    import pyarrow

    # the random access form is the stream between a mark and a table of contents, which may say otherwise
    start = 8 if file.peek(6).startswith(b"ARROW1") else 0
    file.seek(start)
    require_plausible_arrow(file, size, name)
    file.seek(start)
    return iter(pyarrow.ipc.open_stream(file))


def _rows_of(path: str, kind: TableKind, receipt: FileReceipt) -> Records:
    import pyarrow

    name, number = receipt.path, 0
    with open_regular(path, name) as file:
        before = os.fstat(file.fileno())
        receipt.identity = hashlib.file_digest(file, "sha256").hexdigest()
        receipt.size = file.tell()
        file.seek(0)
        batches_of = _parquet_batches if kind == "Parquet" else _arrow_batches
        try:
            for batch in batches_of(file, receipt.size, name):
                require_plausible(0, number + batch.num_rows, receipt.size, name)
                require_unique(batch.schema.names, name)
                yield from records_of(batch, number, name)
                number += batch.num_rows
        except (pyarrow.ArrowException, OSError, MemoryError, struct.error) as error:
            detail = str(error).splitlines()[0] if str(error) else type(error).__name__
            if "CRC" in detail:
                detail = "a page does not match its checksum."
            problem = f"is not a whole {kind} file: {detail}"
            raise UserError(problem, "Fetch or write the file again.", where=name) from error
        except (ValueError, OverflowError) as error:  # a date beyond the year 9999, and the like
            problem = f"holds a value that cannot be read: {error}."
            raise UserError(problem, "Leave its column out, or write it as text.", where=name) from error
        require_unchanged(path, name, before, os.fstat(file.fileno()))


def records_of(batch: Any, number: int, name: str) -> Records:
    """The rows of a table or batch of Arrow, which `number` rows precede, as records; one not in UTF-8 is a bad one."""
    convert = converters(batch.schema)
    for start in range(0, batch.num_rows, BATCH):
        for row in _rows(batch.slice(start, BATCH)):
            number += 1
            where = f"{name}, record {number}"
            try:
                if isinstance(row, UnicodeDecodeError):
                    fix = "Write the file again with texts in UTF-8."
                    raise RecordError(f"not UTF-8 at byte {row.start} of a text", fix)
                for column, change in convert.items():
                    row[column] = change(row[column])
            except RecordError as problem:
                yield problem.at(where, "")
            else:
                yield RawRecord(where, row)


def _rows(batch: Any) -> list[dict[str, Any] | UnicodeDecodeError]:
    try:
        rows: list[dict[str, Any] | UnicodeDecodeError] = batch.to_pylist()
        return rows
    except UnicodeDecodeError:
        rows = []
        for i in range(batch.num_rows):
            try:
                rows += batch.slice(i, 1).to_pylist()
            except UnicodeDecodeError as error:
                rows.append(error)
        return rows
