"""Parquet and Arrow to records."""

import hashlib
import io
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

from simpo_cli.data.arrow_values import converters
from simpo_cli.data.csv_records import require_unique
from simpo_cli.data.file_bytes import open_regular, require_unchanged
from simpo_cli.data.message_cells import with_messages
from simpo_cli.data.raw import BadRecord, FileReceipt, RawRecord, RecordError
from simpo_cli.data.table_bombs import require_plausible, require_plausible_arrow, unpacked_parquet
from simpo_cli.errors import UserError

BATCH = 256  # rows turned into Python objects at a time


def read_parquet(path: str, name: str, receipt: FileReceipt) -> Iterator[RawRecord | BadRecord]:
    """The rows of a Parquet file, a batch at a time."""
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    def batches(file: io.BufferedReader) -> Iterator[Any]:
        table = parquet.ParquetFile(file, page_checksum_verification=True)
        require_plausible(unpacked_parquet(table.metadata), table.metadata.num_rows, receipt.size or 0, name)
        return iter(table.iter_batches(batch_size=BATCH))

    return with_messages(_read_columns(path, name, receipt, batches, "Parquet"), receipt)


def read_arrow(path: str, name: str, receipt: FileReceipt) -> Iterator[RawRecord | BadRecord]:
    """The rows of an Arrow file, of the random access or of the stream form (which `datasets` writes)."""
    import pyarrow as arrow

    def batches(file: io.BufferedReader) -> Iterator[Any]:
        # the random access form is the stream between a mark and a table of contents, which may say otherwise
        start = 8 if file.peek(6).startswith(b"ARROW1") else 0
        file.seek(start)
        require_plausible_arrow(file, receipt.size or 0, name)
        file.seek(start)
        return iter(arrow.ipc.open_stream(file))

    return with_messages(_read_columns(path, name, receipt, batches, "Arrow"), receipt)


def _read_columns(
    path: str,
    name: str,
    receipt: FileReceipt,
    batches_of: Callable[[Any], Iterator[Any]],
    kind: str,
) -> Iterator[RawRecord | BadRecord]:
    import pyarrow

    number = 0
    with open_regular(path, name) as file:
        before = os.fstat(file.fileno())
        receipt.identity = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        receipt.size = file.tell()
        file.seek(0)
        try:
            for batch in batches_of(file):
                require_plausible(0, number + batch.num_rows, receipt.size, name)
                require_unique(batch.schema.names, name)
                yield from records_of(batch, number, name)
                number += batch.num_rows
        except (pyarrow.ArrowException, OSError, MemoryError, struct.error) as error:
            detail = str(error).splitlines()[0] if str(error) else type(error).__name__
            if "CRC" in detail:
                detail = "a page does not match its checksum."
            raise UserError(
                f"is not a whole {kind} file: {detail}", "Fetch or write the file again.", where=name
            ) from error
        except (ValueError, OverflowError) as error:  # a date beyond the year 9999, and the like
            raise UserError(
                f"holds a value that cannot be read: {error}.", "Leave its column out, or write it as text.", where=name
            ) from error
        require_unchanged(path, name, before, os.fstat(file.fileno()))


def records_of(batch: Any, number: int, name: str) -> Iterator[RawRecord | BadRecord]:
    """The rows of a batch as records; a text that is not UTF-8 makes its record a bad one.

    Args:
        batch: a table or a batch of Arrow.
        number: rows before it.
        name: the file, for their places.
    """
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
                yield BadRecord(where, problem.problem, problem.fix, "")
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
