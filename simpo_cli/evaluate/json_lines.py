"""A file of JSON lines that is added to as results come in: what was written before a kill is there afterwards."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from simpo_cli.errors import UserError


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line that a kill cut short is cut off, so that the next one can be added.

    Raises:
        UserError: another line is no row.
    """
    if not file.is_file():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(file, len(whole))
    rows = []
    for number, line in enumerate(whole.decode("utf-8", "replace").split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"is no line of JSON: {error}.", "Restore or remove the line.", where=f"{file}:{number}"
            ) from error
        if not isinstance(row, dict):
            raise UserError("is no JSON object.", "Restore or remove the line.", where=f"{file}:{number}")
        rows.append(row)
    return rows


def add_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows, handed to the system before this returns."""
    with file.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
