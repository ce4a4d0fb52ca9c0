"""A file to its records: which reader it needs, seen from its content, and refusals that say what it looks like."""

import re
from collections.abc import Callable, Iterator

from simpo_cli.data.csv_records import read_csv
from simpo_cli.data.file_bytes import ByteSource
from simpo_cli.data.file_kinds import parses, refuse_other_kinds, refuse_other_text
from simpo_cli.data.json_objects import read_object
from simpo_cli.data.json_records import BOM, read_json_array, read_json_lines
from simpo_cli.data.raw import BadRecord, FileReceipt, RawRecord
from simpo_cli.data.table_records import read_arrow, read_parquet
from simpo_cli.errors import UserError
from simpo_cli.names import plain_suffix

_PARQUET = b"PAR1"
_ARROW = (b"ARROW1", b"\xff\xff\xff\xff")
_CR_IN_TABLE = re.compile(rb'(?:[^"\r\n]++|"[^"]*+")*+\r[^\n]')  # the first line end outside quotes
_CR_IN_LINES = re.compile(rb"\}[ \t]*\r+[ \t]*\{")

Records = Iterator[RawRecord | BadRecord]


def read_records(path: str, receipt: FileReceipt) -> tuple[Records, Callable[[], None] | None]:
    """The records of one file, in order, as a stream; and what completes the receipt if the stream is left early.

    Args:
        path: a regular file.
        receipt: names the file for messages; gets hash, size and warnings.

    Raises:
        UserError: the file is none that we read, or is damaged in a way that leaves its records uncertain.
    """
    source = ByteSource(path, receipt)
    name, start = receipt.path, source.start
    try:
        columnar = _columnar(start, source, name, receipt)
        if columnar is None:
            return _read_text(source, receipt), source.finish
    except UserError:
        source.close()
        raise
    source.close()
    read = read_parquet if columnar == "parquet" else read_arrow
    return read(path, name, receipt), None


def _read_text(source: ByteSource, receipt: FileReceipt) -> Records:
    """The records of a file of text: CSV by its name, else JSON in whichever form."""
    name, start, chunks = receipt.path, source.start.removeprefix(BOM), source.chunks()
    if plain_suffix(name) in (".csv", ".tsv"):
        if start.lstrip()[:1] in (b"{", b"[") and parses(_first_line(start)):
            raise UserError("holds JSON, not CSV.", "Rename it to .jsonl or .json.", where=name)
        if _CR_IN_TABLE.match(start):
            start, chunks = start.replace(b"\r", b"\n"), _with_newlines(chunks)
        return read_csv(chunks, receipt, start)
    if start.lstrip().startswith(b"[") and not _is_lines_of_lists(start):
        return read_json_array(chunks, name)
    refuse_other_text(start, name)
    if b"\n" not in start and _CR_IN_LINES.search(start):
        chunks = _with_newlines(chunks)
    if not start.lstrip().startswith(b"{"):
        return read_json_lines(chunks, name)
    records, chunks = read_object(chunks, name)
    return read_json_lines(chunks, name) if records is None else records


def _with_newlines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """A file whose lines end in a carriage return alone, as old Macs wrote them."""
    return (chunk.replace(b"\r", b"\n") for chunk in chunks)


def _columnar(start: bytes, source: ByteSource, name: str, receipt: FileReceipt) -> str | None:
    kind = "parquet" if start.startswith(_PARQUET) else "arrow" if start.startswith(_ARROW) else None
    suffix = plain_suffix(name)
    if kind is None:
        refuse_other_kinds(start, name)
        if suffix in (".parquet", ".arrow") and start:
            label = suffix[1:].capitalize()
            raise UserError(
                f"is not a {label} file, whatever its name says.", "Fetch or write the file again.", where=name
            )
        return None
    if source.compression:
        raise UserError(
            f"is a {kind.capitalize()} file inside {source.compression}.",
            "Unpack it first; such files are compressed inside.",
            where=name,
        )
    if suffix != f".{kind}":
        receipt.warnings[f"{name} is a {kind.capitalize()} file, whatever its name says"] += 1
    return kind


def _first_line(start: bytes) -> bytes:
    return next((line for line in start.split(b"\n") if line.strip()), b"")


def _is_lines_of_lists(start: bytes) -> bool:
    """Whether a file that begins with a list goes on behind it on the next line: lines, whose first is a bad record."""
    lines = [line for line in start.split(b"\n") if line.strip()]
    return len(lines) > 1 and parses(lines[0])
