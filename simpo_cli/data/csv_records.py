"""CSV to records, as spreadsheets and pandas write it."""

import csv
import re
from collections.abc import Iterator
from typing import Any

from simpo_cli.data.json_records import decode_line, read_lines
from simpo_cli.data.message_cells import with_messages
from simpo_cli.data.raw import MAX_RECORD_BYTES, BadRecord, FileReceipt, RawRecord, RecordError
from simpo_cli.errors import UserError

_QUOTE = "Put fields that hold separators, quotes or line breaks in double quotes."
_SEPARATORS = ",;\t|"
_EXCEL_LINE = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)  # Excel's own line in front of the header
_NO_VALUE = {"NaN", "nan", "<NA>", "NaT", "#N/A"}
"""How pandas and Excel write that there is no value: in every column, for hardly anybody answers with such a word."""
_MAYBE_NO_VALUE = {"NA", "N/A", "null", "NULL", "None"}
"""No value where a column may be empty; as a prompt or an answer it may be meant, and is counted."""
_UNNAMED = "Unnamed: "
_MAY_BE_EMPTY = re.compile(r"^(system(_prompt|_message)?|input|history|tools|context)$|score|rating|reward|rank")
_TEXTS = re.compile(r"prompt|instruction|question|query|chosen|rejected|response|answer|completion|output")


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


def read_csv(chunks: Iterator[bytes], receipt: FileReceipt, start: bytes) -> Iterator[RawRecord | BadRecord]:
    """The rows of a CSV file with a header line; separated as its header is, or as Excel's line in front of it says.

    Args:
        chunks: the file's content.
        receipt: names the file for messages; gets what was counted.
        start: the first piece of the content, to see the separator.

    Raises:
        UserError: there is no usable header.
    """
    return with_messages(_rows(chunks, receipt, start), receipt)


def _rows(chunks: Iterator[bytes], receipt: FileReceipt, start: bytes) -> Iterator[RawRecord | BadRecord]:
    csv.field_size_limit(MAX_RECORD_BYTES)  # one number for the whole process; 128 KiB would refuse long conversations
    name = receipt.path
    source = _Lines(chunks, name)
    lines = iter(source)
    first_line = start.split(b"\n", 1)[0].decode("utf-8", "replace")
    stated = _EXCEL_LINE.fullmatch(first_line)
    if stated:
        next(lines)
        separator, offset = stated[1], 1
    else:
        separator, offset = max(_SEPARATORS, key=first_line.count), 0
    rows = csv.reader(lines, delimiter=separator, strict=True)
    header = _header(rows, source, f"{name}:{1 + offset}", name)
    line = rows.line_num + 1 + offset
    while True:
        where, row, problem = f"{name}:{line}", [], None
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            problem = RecordError(f"not valid CSV: {error}", _QUOTE)
            if rows.line_num + offset > line:  # the open quote has swallowed the lines behind it
                raise UserError("a double quote opens here and is not closed.", problem.fix, where=where) from error
        line = rows.line_num + 1 + offset
        text, refused = source.take()
        problem = refused[0] if refused else problem
        if problem is None and not any(map(str.strip, row)):
            if row:  # a line without anything in it is no row at all
                receipt.warnings[f"{name}: a row without any text is skipped"] += 1
            continue
        if problem is None and len(row) != len(header):
            problem = RecordError(
                f"{len(row)} fields, but the header has {len(header)}",
                f"{len(header)} are expected. {_QUOTE}",
            )
        try:
            if problem is not None:
                raise problem
            yield RawRecord(where, _fields(header, row, receipt), text)
        except RecordError as problem:
            yield BadRecord(where, problem.problem, problem.fix, text)


def _header(rows: Iterator[list[str]], lines: _Lines, where: str, name: str) -> list[str]:
    try:
        header = [cell.strip() for cell in next(rows)]
    except (StopIteration, csv.Error) as error:
        raise UserError("has no header line.", "Begin the file with the names of its columns.", where=name) from error
    _, refused = lines.take()
    if refused:
        raise UserError(f"{refused[0].problem}.", refused[0].fix, where=where)
    # a column without a name is the index of pandas, or what a spreadsheet has left behind; pandas reads it so
    header = [cell or _unnamed(i, header) for i, cell in enumerate(header)]
    require_unique(header, where)
    return header


def _unnamed(number: int, header: list[str]) -> str:
    name = f"{_UNNAMED}{number}"
    while name in header:
        name += ".1"
    return name


def require_unique(header: list[str], where: str) -> None:
    """Refuse columns of one name.

    Raises:
        UserError: names the column.
    """
    if len(set(header)) != len(header):
        twice = next(cell for cell in header if header.count(cell) > 1)
        raise UserError(f"two columns are named {twice!r}.", "Give each column its own name.", where=where)


def _fields(header: list[str], row: list[str], receipt: FileReceipt) -> dict[str, Any]:
    """A row as an object; a word that stands for a missing value is null.

    Raises:
        RecordError: such a word stands where the text of a pair belongs.
    """
    fields: dict[str, Any] = {}
    for column, cell in zip(header, row, strict=True):
        if not cell and column.startswith(_UNNAMED):
            continue
        fields[column] = cell
        if cell in _NO_VALUE or (cell in _MAYBE_NO_VALUE and _MAY_BE_EMPTY.search(column)):
            if column in ("prompt", "chosen", "rejected"):
                raise RecordError(
                    f"{column}: the word {cell}, which stands for a missing value",
                    "Write the text, or set data.on_bad_record: skip to leave such records out and count them.",
                )
            fields[column] = None
            receipt.warnings[f"{receipt.path}: the word {cell} in {column} is read as no value"] += 1
        elif cell in _MAYBE_NO_VALUE and _TEXTS.search(column):
            receipt.warnings[f"{receipt.path}: the word {cell} in {column} is read as text"] += 1
    return fields
