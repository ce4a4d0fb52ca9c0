"""Cells of tables that hold messages as JSON text, which a table may not be able to hold otherwise.

A column whose cells are all such, going by the first records, is decoded; a later cell that is other text is refused.
Where only some are, each is decoded by itself and they are counted, so that nothing is trained on as JSON text unseen.
"""

import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from simpo_cli.data.json_records import whole_value
from simpo_cli.data.messages import MESSAGE_AS_TEXT
from simpo_cli.data.raw import BadRecord, FileReceipt, RawRecord, RecordError
from simpo_cli.errors import UserError

Records = Iterator[RawRecord | BadRecord]

_SAMPLE = 100  # records that are looked at before a column is decided on
_TOOLS = ("tools", "functions")
_ROLE = re.compile(r"'(role|from)'\s*:")
_OPENS = re.compile(r"\s*[\[{]")


def with_messages(records: Records, receipt: FileReceipt) -> Records:
    """The records of a table with the messages in its cells as messages.

    Args:
        records: as they stand in the table.
        receipt: names the file; gets the number of cells that were decoded in a column of other texts.

    Raises:
        UserError: a column holds messages as Python prints them, which no reader can take for sure.
    """
    sample = list(islice(records, _SAMPLE))
    whole = _columns_of_messages(sample, receipt)
    for record in chain(sample, records):
        yield _with_messages(record, whole, receipt) if isinstance(record, RawRecord) else record


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


def _with_messages(record: RawRecord, whole: set[str], receipt: FileReceipt) -> RawRecord | BadRecord:
    decoded = {}
    for column, cell in record.fields.items():
        value = _decoded(cell, column)
        if value is not None:
            decoded[column] = value
            if column not in whole:
                receipt.warnings[f"{receipt.path}: JSON text of messages in {column} is read as messages"] += 1
        elif column in whole and not _is_blank(cell):
            return BadRecord(
                record.where,
                f"{column}: expected messages as JSON text, as in the records before",
                "Write the messages, or set data.on_bad_record: skip to leave such records out and count them.",
                record.shown(),
            )
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
