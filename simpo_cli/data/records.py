"""A file to its records: which reader it needs, seen from its content, and refusals that say what it looks like."""

import json
import os
import re
from collections.abc import Callable, Iterator

from simpo_cli.data.file_bytes import GZIP_MAGIC, ZSTD_MAGIC, ByteSource
from simpo_cli.data.json_records import BOM, decode_line, parse_value, read_json_array, read_json_lines
from simpo_cli.data.raw import BadRecord, FileReceipt, RawRecord, RecordError
from simpo_cli.data.table_records import read_arrow, read_csv, read_parquet
from simpo_cli.errors import UserError

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
"""Files that a folder is searched for; each may also end in .gz or .zst."""
_PACKED = (".gz", ".zst", ".zstd")

_PARQUET = b"PAR1"
_ARROW = (b"ARROW1", b"\xff\xff\xff\xff")
_OTHER_KINDS = (
    (GZIP_MAGIC, "an archive inside an archive", "Unpack it once."),
    (ZSTD_MAGIC, "an archive inside an archive", "Unpack it once."),
    (b"PK\x03\x04", "a zip archive (or an Excel sheet)", "Unpack it, or export it as JSON lines."),
    (b"\xfd7zXZ\x00", "an xz file", "Unpack it with xz -d."),
    (b"BZh", "a bzip2 file", "Unpack it with bzip2 -d."),
    (b"SQLite format 3", "an SQLite database", "Export the table as CSV or JSON lines."),
    (b"%PDF", "a PDF", "Preference pairs come as JSON, CSV or Parquet."),
    (b"version https://git-lfs", "a pointer of Git LFS, not the data", "Fetch the data with git lfs pull."),
)
_UTF16 = "Re-encode it as UTF-8, such as with iconv -f utf-16 -t utf-8."


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
            _refuse_other_kinds(start, name)
    except UserError:
        source.close()
        raise
    if columnar == "parquet":
        source.close()
        return read_parquet(path, name, receipt), None
    if columnar == "arrow":
        source.close()
        return read_arrow(path, name, receipt), None
    start = start.removeprefix(BOM)
    if plain_suffix(name) in (".csv", ".tsv"):
        if start.lstrip()[:1] in (b"{", b"[") and _parses(_first_line(start)):
            raise UserError("holds JSON, not CSV.", "Rename it to .jsonl or .json.", where=name)
        return read_csv(source.chunks(), name, start), source.finish
    if start.lstrip().startswith(b"[") and not _is_lines_of_lists(start):
        return read_json_array(source.chunks(), name), source.finish
    _refuse_other_text(start, name)
    return read_json_lines(source.chunks(), name), source.finish


def plain_suffix(name: str) -> str:
    """The suffix that tells the kind of a file, in lower case, behind any .gz or .zst."""
    stem, suffix = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] if suffix in _PACKED else suffix


def _columnar(start: bytes, source: ByteSource, name: str, receipt: FileReceipt) -> str | None:
    kind = "parquet" if start.startswith(_PARQUET) else "arrow" if start.startswith(_ARROW) else None
    suffix = plain_suffix(name)
    if kind is None:
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


def _refuse_other_kinds(start: bytes, name: str) -> None:
    if not start or start.removeprefix(BOM).isspace() or start == BOM:
        if len(start) < 2**16:
            raise UserError("holds no records: it is empty.", "Name a file with preference pairs.", where=name)
        return
    for magic, kind, fix in _OTHER_KINDS:
        if start.startswith(magic):
            raise UserError(f"is {kind}.", fix, where=name)
    zero_share = start[:200].count(0) / len(start[:200])
    if zero_share > 0.9:
        raise UserError("is filled with zero bytes.", "A write was interrupted; write the file again.", where=name)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or zero_share > 0.25:
        raise UserError("is text in UTF-16, not UTF-8.", _UTF16, where=name)
    if re.match(rb"\s*<(!doctype|html|head|\?xml|!--)", start, re.IGNORECASE):
        raise UserError(
            "is a web page (HTML or XML), not data.",
            "A download may have saved an error page or a login form; open it in a browser to see.",
            where=name,
        )


def _refuse_other_text(start: bytes, name: str) -> None:
    """Refuse a file of text that is no JSON at all; single records that are not JSON are refused by the reader."""
    lines = [line for line in start.split(b"\n", 20)[:20] if line.strip()]
    if not lines:
        return
    first = lines[0].lstrip()
    if first.startswith(b"{"):
        _refuse_wrapped(start, lines, name)
        return
    if any(line.lstrip()[:1] in (b"{", b"[") or _parses(line) for line in lines):
        return
    separator = max((b",", b"\t", b";"), key=first.count)
    if first.count(separator):
        kind = "tabs" if separator == b"\t" else f"{separator.decode()!r}"
        raise UserError(
            f"looks like a table (CSV) with columns split by {kind}, not like JSON.", "Rename it to .csv.", where=name
        )
    beginning = first[:30].decode("utf-8", "replace")
    raise UserError(
        f"is not JSON: it begins with {beginning!r}.",
        "Give one JSON object a line, a JSON list of objects, CSV or Parquet.",
        where=name,
    )


_WRAPPED = re.compile(rb'\s*\{\s*"([^"\\]{1,60})"\s*:\s*\[\s*\{')
_OWN_LISTS = (b"prompt", b"chosen", b"rejected", b"conversations", b"messages", b"preferred_output", b"history")


def _refuse_wrapped(start: bytes, lines: list[bytes], name: str) -> None:
    """Refuse a file that is one JSON object instead of a list of them."""
    wrapped = _WRAPPED.match(start)
    if wrapped and not wrapped[1].endswith(_OWN_LISTS) and not wrapped[1].endswith((b"_messages", b"_output")):
        key = wrapped[1].decode("utf-8", "replace")
        raise UserError(
            f"is one object that holds its records under {key!r}, not a list of records.",
            f"Unwrap it, such as with jq -c '.{key}[]' FILE > pairs.jsonl.",
            where=name,
        )
    if len(lines) > 1 and not lines[1].lstrip().startswith(b"{") and _ends_open(lines[0]):
        raise UserError(
            "holds JSON objects over several lines.",
            "Write one record a line, such as with jq -c . FILE > pairs.jsonl, or one list of records.",
            where=name,
        )


def _ends_open(line: bytes) -> bool:
    text = line.decode("utf-8", "replace")
    try:
        parse_value(text, len(text) - len(text.lstrip()))
    except json.JSONDecodeError as error:
        return error.pos >= len(text.rstrip()) and not error.msg.startswith("Unterminated")
    except RecordError:
        return False
    return False


def _first_line(start: bytes) -> bytes:
    return next((line for line in start.split(b"\n") if line.strip()), b"")


def _parses(line: bytes) -> bool:
    try:
        text = decode_line(line, 0).strip()
        return bool(text) and parse_value(text)[1] == len(text)
    except (json.JSONDecodeError, RecordError):
        return False


def _is_lines_of_lists(start: bytes) -> bool:
    """Whether a file that begins with a list goes on behind it on the next line: lines, whose first is a bad record."""
    lines = [line for line in start.split(b"\n") if line.strip()]
    return len(lines) > 1 and _parses(lines[0])
