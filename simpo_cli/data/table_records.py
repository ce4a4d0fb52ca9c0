"""CSV, Parquet and Arrow to records."""

import csv
import hashlib
import io
import json
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

from simpo_cli.data.file_bytes import open_regular, require_unchanged
from simpo_cli.data.json_records import decode_line, parse_value, read_lines
from simpo_cli.data.raw import MAX_RECORD_BYTES, BadRecord, FileReceipt, RawRecord, RecordError
from simpo_cli.data.table_bombs import require_plausible, require_plausible_arrow, unpacked_parquet
from simpo_cli.errors import UserError

_BATCH = 256  # rows turned into Python objects at a time
_QUOTE = "Put fields that hold separators, quotes or line breaks in double quotes."


# CSV


class _Lines:
    """Decoded lines for the csv module, which remembers those that were not UTF-8."""

    def __init__(self, chunks: Iterator[bytes], name: str) -> None:
        self._lines = read_lines(chunks, name)
        self.refused: list[RecordError] = []
        self.since_record: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for _, offset, line in self._lines:
            try:
                text = decode_line(line, offset)
            except RecordError as problem:
                self.refused.append(problem)
                text = line.decode("utf-8", "replace")
            if "\0" in text:
                self.refused.append(RecordError("a NUL byte", "Remove it; a write may have been interrupted."))
                text = text.replace("\0", "\ufffd")
            self.since_record.append(text)
            yield text + "\n"

    def take(self) -> tuple[str, list[RecordError]]:
        """The lines and troubles since the last record."""
        text, refused = "\n".join(self.since_record), self.refused
        self.since_record, self.refused = [], []
        return text, refused


def read_csv(chunks: Iterator[bytes], name: str, start: bytes) -> Iterator[RawRecord | BadRecord]:
    """The rows of a CSV file with a header line; commas, semicolons or tabs, whichever its header has.

    Args:
        chunks: the file's content.
        name: the file, for messages.
        start: the first piece of the content, to see the separator.

    Raises:
        UserError: there is no usable header.
    """
    csv.field_size_limit(MAX_RECORD_BYTES)  # one number for the whole process; 128 KiB would refuse long conversations
    header_line = start.split(b"\n", 1)[0].decode("utf-8", "replace")
    separator = max(",;\t", key=header_line.count)
    lines = _Lines(chunks, name)
    rows = csv.reader(iter(lines), delimiter=separator, strict=True)
    header = _header(rows, lines, name)
    line = rows.line_num + 1
    while True:
        where, row, problem = f"{name}:{line}", [], None
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            problem = RecordError(f"not valid CSV: {error}", _QUOTE)
            if rows.line_num > line:  # the open quote has swallowed the lines behind it
                raise UserError("a double quote opens here and is not closed.", problem.fix, where=where) from error
        line = rows.line_num + 1
        text, refused = lines.take()
        problem = refused[0] if refused else problem
        if problem is None and not row:
            continue
        if problem is None and len(row) != len(header):
            problem = RecordError(
                f"{len(row)} fields, but the header has {len(header)}",
                f"{len(header)} are expected. {_QUOTE}",
            )
        if problem is not None:
            yield BadRecord(where, problem.problem, problem.fix, text)
        else:
            yield RawRecord(where, {key: _cell(value) for key, value in zip(header, row, strict=True)}, text)


def _header(rows: Iterator[list[str]], lines: _Lines, name: str) -> list[str]:
    try:
        header = [cell.strip() for cell in next(rows)]
    except (StopIteration, csv.Error) as error:
        raise UserError("has no header line.", "Begin the file with the names of its columns.", where=name) from error
    _, refused = lines.take()
    if refused:
        raise UserError(f"{refused[0].problem}.", refused[0].fix, where=f"{name}:1")
    _require_unique(header, f"{name}:1")
    return header


def _require_unique(header: list[str], where: str) -> None:
    if len(set(header)) != len(header):
        twice = next(cell for cell in header if header.count(cell) > 1)
        raise UserError(f"two columns are named {twice!r}.", "Give each column its own name.", where=where)


def _cell(text: str) -> Any:
    """A cell; a list of messages, which CSV can only hold as JSON, is a list again."""
    if text.startswith("[{"):
        try:
            value, end = parse_value(text)
        except (json.JSONDecodeError, RecordError):
            return text
        if end == len(text) and all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in value):
            return value
    return text


# Parquet and Arrow


def read_parquet(path: str, name: str, receipt: FileReceipt) -> Iterator[RawRecord | BadRecord]:
    """The rows of a Parquet file, a batch at a time."""
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    def batches(file: io.BufferedReader) -> Iterator[Any]:
        table = parquet.ParquetFile(file)
        require_plausible(unpacked_parquet(table.metadata), table.metadata.num_rows, receipt.size or 0, name)
        return iter(table.iter_batches(batch_size=_BATCH))

    return _read_columns(path, name, receipt, batches, "Parquet")


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

    return _read_columns(path, name, receipt, batches, "Arrow")


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
                _require_unique(batch.schema.names, name)
                for start in range(0, batch.num_rows, _BATCH):
                    for row in _rows(batch.slice(start, _BATCH)):
                        number += 1
                        where = f"{name}, record {number}"
                        if isinstance(row, UnicodeDecodeError):
                            fix = "Write the file again with texts in UTF-8."
                            yield BadRecord(where, f"not UTF-8 at byte {row.start} of a text", fix, "")
                        else:
                            yield RawRecord(where, row)
        except (pyarrow.ArrowException, OSError, MemoryError, struct.error) as error:
            detail = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"is not a whole {kind} file: {detail}", "Fetch or write the file again.", where=name
            ) from error
        except (ValueError, OverflowError) as error:  # a date beyond the year 9999, and the like
            raise UserError(
                f"holds a value that cannot be read: {error}.", "Leave its column out, or write it as text.", where=name
            ) from error
        require_unchanged(path, name, before, os.fstat(file.fileno()))


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
