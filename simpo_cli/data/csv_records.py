"""CSV to records, as spreadsheets and pandas write it; and cells of any table that hold messages as JSON text."""

import csv
import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from simpo_cli.data.file_bytes import FileReceipt
from simpo_cli.data.json_records import decode_line, read_lines, whole_value
from simpo_cli.data.messages import MESSAGE_AS_TEXT
from simpo_cli.data.pair import MAX_RECORD_BYTES, BadRecord, RawRecord, RecordError, Records
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
_SAMPLE = 100  # records that are looked at before a column is decided on
_TOOLS = ("tools", "functions")
_ROLE = re.compile(r"'(role|from)'\s*:")
_OPENS = re.compile(r"\s*[\[{]")


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


def read_csv(chunks: Iterator[bytes], receipt: FileReceipt, start: bytes) -> Records:
    """The rows of a CSV file with a header line; separated as its header is, or as Excel's line in front of it says.

    `start` is the first piece of the content; the receipt names the file and gets what is counted.

    Raises:
        UserError: there is no usable header.
    """
    return with_messages(_rows(chunks, receipt, start), receipt)


def _rows(chunks: Iterator[bytes], receipt: FileReceipt, start: bytes) -> Records:
    csv.field_size_limit(MAX_RECORD_BYTES)  # one number for the whole process; 128 KiB would refuse long conversations
    name = receipt.path
    source = _Lines(chunks, name)
    lines = iter(source)
    first_line = start.split(b"\n", 1)[0].decode("utf-8", "replace")
    stated = _EXCEL_LINE.fullmatch(first_line)
    separator, offset = (stated[1], 1) if stated else (max(_SEPARATORS, key=first_line.count), 0)
    if stated:
        next(lines)
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
                f"{len(row)} fields, but the header has {len(header)}", f"{len(header)} are expected. {_QUOTE}"
            )
        try:
            if problem is not None:
                raise problem
            yield RawRecord(where, _fields(header, row, receipt), text)
        except RecordError as problem:
            yield problem.at(where, text)


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
    """Refuse columns of one name."""
    if len(set(header)) != len(header):
        twice = next(cell for cell in header if header.count(cell) > 1)
        raise UserError(f"two columns are named {twice!r}.", "Give each column its own name.", where=where)


def _fields(header: list[str], row: list[str], receipt: FileReceipt) -> dict[str, Any]:
    """A row as an object; a word for a missing value is null, and refused where the text of a pair belongs."""
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


# Messages as JSON text


def with_messages(records: Records, receipt: FileReceipt) -> Records:
    """The records of a table with the messages in its cells as messages, which a table may only hold as JSON text.

    A column whose cells are all such, going by the first records, is decoded; a later cell that is other text is
    refused. Where only some are, each is decoded by itself and they are counted, so that nothing is trained on as JSON
    text unseen.

    Raises:
        UserError: a column holds messages as Python prints them, which no reader can take for sure.
    """
    sample = list(islice(records, _SAMPLE))
    whole = _columns_of_messages(sample, receipt)
    for record in chain(sample, records):
        yield _decoded_record(record, whole, receipt) if isinstance(record, RawRecord) else record


def _columns_of_messages(sample: list[RawRecord | BadRecord], receipt: FileReceipt) -> set[str]:
    """The columns whose cells are all such, where they are not empty."""
    cells: dict[str, list[Any]] = {}
    for record in sample:
        if isinstance(record, RawRecord):
            for column, cell in record.fields.items():
                if isinstance(cell, str | list) and not _is_blank(cell):
                    cells.setdefault(column, []).append(cell)
    for column, found in cells.items():
        begun = [MESSAGE_AS_TEXT.match(cell) if isinstance(cell, str) else None for cell in found]
        if all(one is not None and one[1] == "'" and _ROLE.search(one.string) for one in begun):
            raise UserError(
                f"the column {column} holds messages written as text by Python, not as JSON.",
                "Write the messages themselves; pandas does so with to_json(orient='records', lines=True), not with "
                "to_csv. A column that is not needed may be left out.",
                where=receipt.path,
            )
    return {column for column, found in cells.items() if all(_decoded(cell, column) is not None for cell in found)}


def _decoded_record(record: RawRecord, whole: set[str], receipt: FileReceipt) -> RawRecord | BadRecord:
    decoded = {}
    for column, cell in record.fields.items():
        value = _decoded(cell, column)
        if value is not None:
            decoded[column] = value
            if column not in whole:
                receipt.warnings[f"{receipt.path}: JSON text of messages in {column} is read as messages"] += 1
        elif column in whole and not _is_blank(cell):
            problem = f"{column}: expected messages as JSON text, as in the records before"
            fix = "Write the messages, or set data.on_bad_record: skip to leave such records out and count them."
            return record.refused(RecordError(problem, fix))
    return RawRecord(record.where, record.fields | decoded, record.text) if decoded else record


def _is_blank(cell: Any) -> bool:
    return not cell or (isinstance(cell, str) and cell.isspace())


def _decoded(cell: Any, column: str) -> Any:
    """The message, the messages or the tools that a cell holds as JSON text, or None."""
    if isinstance(cell, list) and column in _TOOLS:
        tools = [_parsed(tool) for tool in cell]
        return tools if cell and all(isinstance(tool, dict) for tool in tools) else None
    value = _parsed(cell)
    turns = value if isinstance(value, list) else [value]
    return value if turns and all(map(_is_message, turns)) else None


def _is_message(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    return bool({"role", "from"} & value.keys()) and bool({"content", "value", "tool_calls"} & value.keys())


def _parsed(text: Any) -> Any:
    """The JSON list or object that a text is, or None."""
    if not isinstance(text, str) or not _OPENS.match(text):
        return None
    try:
        return whole_value(text)
    except (json.JSONDecodeError, RecordError):
        return None
