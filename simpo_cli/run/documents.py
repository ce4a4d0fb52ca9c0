"""What a run has written, read back strictly: the one place where run.json and the logs beside it are believed.

Others may have written them, or damaged them: what is not of its shape (see `shapes`) is refused by name.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from simpo_cli.errors import UserError
from simpo_cli.files import MalformedError, parse, rows_of
from simpo_cli.run.shapes import SCHEMA_VERSION, SHAPES

_MOST_BYTES = 256_000_000


class LaterVersionError(MalformedError):
    """It is what a later version writes."""


def read_receipt(run: Path) -> dict[str, Any]:
    """run.json.

    Raises:
        UserError: it is missing, damaged, or of a later version.
    """
    file = run / "run.json"
    try:
        return receipt_of(_bytes_of(file))
    except LaterVersionError as error:
        raise UserError(f"{error}.", "Update simpo: pip install -U simpo-cli", where=str(file)) from error
    except MalformedError as error:
        raise UserError(f"is not what a run writes: {error}.", "Restore the file.", where=str(file)) from error


def receipt_of(data: bytes) -> dict[str, Any]:
    """The content of run.json.

    Raises:
        MalformedError: it is not what a run writes.
    """
    content = parse(data)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is int and version > SCHEMA_VERSION:
        raise LaterVersionError(f"was written by a later version of simpo (schema_version {version})")
    receipt = of_shape("run.json", content)
    outcome = receipt.get("outcome") or {}
    parts = {"before", "after", "difference"} & outcome.keys()
    if len(parts) not in (0, 3):
        raise MalformedError(f"outcome has {' and '.join(sorted(parts))} and not the rest of before, after, difference")
    return receipt


def read_log(file: Path) -> list[dict[str, Any]]:
    """The rows of a log of a run; a last line that is being written is left out, and a missing file has none.

    Raises:
        UserError: a line is none of this log.
    """
    if not file.is_file():
        return []
    whole, _, rest = _bytes_of(file).rpartition(b"\n")
    rows = list(rows_of(whole, file, lambda line: of_shape(file.name, parse(line))))
    with suppress(MalformedError):
        rows += [of_shape(file.name, parse(rest))] if rest else []
    return rows


def code_of_old(text: str) -> str:
    """The code of the finding that a line of notes.jsonl tells of, of a version that wrote none beside the text."""
    code, _, rest = text.partition(" ")
    return code if rest and len(code) == 6 and code[:3].isupper() and code[3:].isdigit() else ""


def of_shape(name: str, content: Any) -> dict[str, Any]:
    """The same content, which has the shape of a document of this name.

    Raises:
        MalformedError: it has not.
    """
    try:
        SHAPES[name].validate_python(content)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)[0]
        known = _keys(content) | ({found["loc"][-1]} if found["type"] == "missing" else set())
        key = ".".join(str(part) for part in found["loc"] if isinstance(part, int) or part in known)
        wanted = "is missing" if found["type"] == "missing" else found["msg"][0].lower() + found["msg"][1:]
        raise MalformedError(f"{key or 'the whole'}: {wanted}") from error
    document: dict[str, Any] = content
    return document


def _keys(content: Any) -> set[str]:
    """The names in a document and of what it may hold: pydantic also names the alternatives it has tried."""
    found: set[str] = set()
    level = [content]
    while level:
        value = level.pop()
        if isinstance(value, dict):
            found |= value.keys()
            level += value.values()
        elif isinstance(value, list):
            level += value
    return found


def _bytes_of(file: Path) -> bytes:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise UserError(
                f"is over {_MOST_BYTES / 1e6:.0f} MB.", "Restore what the run has written.", where=str(file)
            )
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}.", "Restore the file.", where=str(file)) from error
