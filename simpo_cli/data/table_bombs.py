"""Tables that are small on disk and huge in memory, told from what they say of themselves before they are read.

A Parquet file lists the sizes of its parts. Of an Arrow file each compressed buffer begins with its unpacked size;
where the buffers lie is in the head of their message, which pyarrow does not show, so it is read here (a flatbuffer:
tables of offsets, see Message.fbs of Apache Arrow).
"""

import struct
from typing import Any, BinaryIO

from simpo_cli.data.file_bytes import BOMB_BYTES, BOMB_RATIO
from simpo_cli.errors import UserError

_MOST_RECORDS = 1_000_000  # of a file with fewer bytes than records

_HEADER_TYPE, _HEADER, _BUFFERS, _COMPRESSION, _DATA = 1, 2, 2, 3, 1  # fields by their number
_DICTIONARY, _RECORDS = 2, 3  # kinds of messages


def require_plausible(unpacked: int, records: int, size: int, name: str) -> None:
    """Refuse a table that unpacks to far more than its file holds.

    Args:
        unpacked: bytes of its values.
        records: rows.
        size: bytes of the file.
        name: the file, for the message.

    Raises:
        UserError: it does.
    """
    if unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * size:
        problem = f"unpacks to more than {unpacked // 2**20:,} MiB from {size // 1024 + 1:,} KiB, which no text does."
    elif records > _MOST_RECORDS and records > size:
        problem = f"says that it holds {records:,} records in {size:,} bytes."
    else:
        return
    raise UserError(problem, "Look at it with the tool that wrote it, and write it again as JSON lines.", where=name)


def unpacked_parquet(metadata: Any) -> int:
    """Bytes of a Parquet file's values, by its own account."""
    return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


def require_plausible_arrow(file: BinaryIO, size: int, name: str) -> None:
    """Refuse an Arrow file, open at its first message, whose compressed buffers say that they are huge.

    Raises:
        UserError: they do.
    """
    from pyarrow import ipc  # type: ignore[import-untyped]

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
