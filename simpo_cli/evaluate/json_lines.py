"""A file of JSON lines that is added to as results come in: what was written before a kill is there afterwards."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from simpo_cli.json_documents import rows_of


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line that a kill cut short, or that is being written, is left out.

    Raises:
        UserError: another line is no row.
    """
    if not file.is_file():
        return []
    content = file.read_bytes()
    return list(rows_of(content[: content.rfind(b"\n") + 1], file))


def add_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows, handed to the system before this returns; a last line that a kill cut short goes first."""
    if file.is_file():
        _cut_unfinished_line(file)
    with file.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def _cut_unfinished_line(file: Path) -> None:
    with file.open("r+b") as stream:
        if not stream.seek(0, os.SEEK_END):
            return
        stream.seek(-1, os.SEEK_END)
        if stream.read() != b"\n":
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)
