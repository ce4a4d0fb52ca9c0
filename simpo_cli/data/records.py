"""A file to its records: which reader it needs, seen from its content, and refusals that say what it looks like."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields

from simpo_cli.data.csv_records import read_csv
from simpo_cli.data.file_bytes import GZIP_MAGIC, ZSTD_MAGIC, ByteSource, FileReceipt
from simpo_cli.data.json_objects import MODEL_HINT, read_object
from simpo_cli.data.json_records import BOM, decode_line, read_json_array, read_json_lines, whole_value
from simpo_cli.data.pair import RecordError, Records
from simpo_cli.data.table_records import TableKind, read_table
from simpo_cli.errors import UserError
from simpo_cli.names import misfit, plain_suffix
from simpo_cli.recipe.schema import Recipe

_PARQUET = b"PAR1"
_ARROW = (b"ARROW1", b"\xff\xff\xff\xff")
_CR_IN_TABLE = re.compile(rb'(?:[^"\r\n]++|"[^"]*+")*+\r[^\n]')  # the first line end outside quotes
_CR_IN_LINES = re.compile(rb"\}[ \t]*\r+[ \t]*\{")

_PAIRS = "Preference pairs come as JSON, CSV or Parquet."
_OTHER_KINDS = (
    (GZIP_MAGIC, "an archive inside an archive", "Unpack it once."),
    (ZSTD_MAGIC, "an archive inside an archive", "Unpack it once."),
    (b"\xfd7zXZ\x00", "an xz file", "Unpack it with xz -d."),
    (b"BZh", "a bzip2 file", "Unpack it with bzip2 -d."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it with 7z x."),
    (b"Rar!", "a RAR archive", "Unpack it first."),
    (b"\xd0\xcf\x11\xe0", "an Excel sheet of the old form (.xls)", "Save the sheet as CSV UTF-8."),
    (b"SQLite format 3", "an SQLite database", "Export the table as CSV or JSON lines."),
    (b"%PDF", "a PDF", _PAIRS),
    (b"\x89PNG", "an image", _PAIRS),
    (b"\xff\xd8\xff", "an image", _PAIRS),
    (b"\x93NUMPY", "an array of NumPy", _PAIRS),
    (b"\x89HDF", "an HDF5 file", "Export the table as CSV or JSON lines."),
    (b"ORC", "an ORC file", "Write it again as Parquet."),
    (b"Obj\x01", "an Avro file", "Write it again as Parquet or JSON lines."),
    (b"GGUF", "model weights (GGUF)", MODEL_HINT),
    (b"version https://git-lfs", "a pointer of Git LFS, not the data", "Fetch the data with git lfs pull."),
)
_IN_ZIP = (
    (rb"xl/|\[Content_Types\]", "an Excel sheet (.xlsx)", "Save the sheet as CSV UTF-8."),
    (rb"data\.pkl|/version|\.data/", "model weights (PyTorch)", MODEL_HINT),
    (rb"", "a zip archive", "Unpack it with unzip, and name the file inside."),
)
_UTF16 = "Re-encode it as UTF-8, such as with iconv -f utf-16 -t utf-8."


def read_records(path: str, receipt: FileReceipt) -> tuple[Records, Callable[[], None] | None]:
    """The records of one file, in order, as a stream; and what completes the receipt if the stream is left early.

    Args:
        path: a regular file.
        receipt: names the file for messages; gets hash, size and warnings.

    Raises:
        UserError: the file is none that we read, or is damaged in a way that leaves its records uncertain.
    """
    source = ByteSource(path, receipt)
    try:
        columnar = _columnar(source, receipt)
        if columnar is None:
            return _read_text(source, receipt), source.finish
    except UserError:
        source.close()
        raise
    source.close()
    return read_table(path, columnar, receipt), None


def _read_text(source: ByteSource, receipt: FileReceipt) -> Records:
    """The records of a file of text: CSV by its name, else JSON in whichever form."""
    name, start, chunks = receipt.path, source.start.removeprefix(BOM), source.chunks()
    if plain_suffix(name) in (".csv", ".tsv"):
        if start.lstrip()[:1] in (b"{", b"[") and _parses(start.lstrip().split(b"\n", 1)[0]):
            raise UserError("holds JSON, not CSV.", "Rename it to .jsonl or .json.", where=name)
        if _CR_IN_TABLE.match(start):
            start, chunks = start.replace(b"\r", b"\n"), _with_newlines(chunks)
        return read_csv(chunks, receipt, start)
    if start.lstrip().startswith(b"[") and not _is_lines_of_lists(start):
        return read_json_array(chunks, name)
    _refuse_other_text(start, name)
    if b"\n" not in start and _CR_IN_LINES.search(start):
        chunks = _with_newlines(chunks)
    if not start.lstrip().startswith(b"{"):
        return read_json_lines(chunks, name)
    records, chunks = read_object(chunks, name)
    return read_json_lines(chunks, name) if records is None else records


def _with_newlines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """A file whose lines end in a carriage return alone, as old Macs wrote them."""
    return (chunk.replace(b"\r", b"\n") for chunk in chunks)


def _columnar(source: ByteSource, receipt: FileReceipt) -> TableKind | None:
    """Which kind of table a file is by its first bytes; None where it is text."""
    start, name = source.start, receipt.path
    kind: TableKind | None = "Parquet" if start.startswith(_PARQUET) else "Arrow" if start.startswith(_ARROW) else None
    named = plain_suffix(name).removeprefix(".").capitalize()
    if kind is None:
        _refuse_other_kinds(start, name)
        if named in ("Parquet", "Arrow") and start:
            problem = f"is not a {named} file, whatever its name says."
            raise UserError(problem, "Fetch or write the file again.", where=name)
        return None
    if source.compression:
        problem = f"is a {kind} file inside {source.compression}."
        raise UserError(problem, "Unpack it first; such files are compressed inside.", where=name)
    if named != kind:
        receipt.warnings[f"{name} is a {kind} file, whatever its name says"] += 1
    return kind


def _is_lines_of_lists(start: bytes) -> bool:
    """Whether a file that begins with a list goes on behind it on the next line: lines, whose first is a bad record."""
    lines = [line for line in start.split(b"\n") if line.strip()]
    return len(lines) > 1 and _parses(lines[0])


# What holds no pairs


def _refuse_other_kinds(start: bytes, name: str) -> None:
    """Refuse a file that is empty, or by its first bytes no file of records."""
    if not start or start.removeprefix(BOM).isspace() or start == BOM:
        if len(start) < 2**16:
            raise UserError("holds no records: it is empty.", "Name a file that holds some.", where=name)
        return
    for magic, kind, fix in _OTHER_KINDS:
        if start.startswith(magic):
            raise UserError(f"is {kind}.", fix, where=name)
    if start.startswith(b"PK\x03\x04"):
        kind, fix = next((kind, fix) for inside, kind, fix in _IN_ZIP if re.search(inside, start[:4096]))
        raise UserError(f"is {kind}.", fix, where=name)
    if start[257:262] == b"ustar":
        raise UserError("is a tar archive.", "Unpack it with tar -xf, and name the file inside.", where=name)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**27 and b'"data_offsets"' in start[:4096]:
        raise UserError("is model weights (safetensors).", MODEL_HINT, where=name)
    if re.match(rb"\x80[\x02-\x05]", start):
        raise UserError("is a pickle of Python.", "It may run code when it is opened; write JSON lines.", where=name)
    zero_share = start[:200].count(0) / len(start[:200])
    if zero_share > 0.9:
        raise UserError("is filled with zero bytes.", "A write was interrupted; write the file again.", where=name)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or zero_share > 0.25:
        raise UserError("is text in UTF-16, not UTF-8.", _UTF16, where=name)
    if re.match(rb"\s*<(!doctype|html|head|\?xml|!--)", start.removeprefix(BOM), re.IGNORECASE):
        raise UserError(
            "is a web page (HTML or XML), not data.",
            "A download may have saved an error page or a login form; open it in a browser to see.",
            where=name,
        )


def _refuse_other_text(start: bytes, name: str) -> None:
    """Refuse a file of text that is no JSON at all; single records that are not JSON are refused by the reader."""
    lines = [line for line in start.split(b"\n", 20)[:20] if line.strip()]
    if not lines or any(line.lstrip()[:1] in (b"{", b"[") or _parses(line) for line in lines):
        return
    first = lines[0].lstrip()
    keys = {key.decode() for key in re.findall(rb"^(\w+):(?:\s|$)", start, re.MULTILINE)}
    if len(keys & {field.name for field in fields(Recipe)}) >= 2:
        raise misfit(name, "recipe", "pairs")
    if re.match(rb"---|- \w+:", first):
        raise UserError("looks like YAML, not like JSON.", "Give one JSON object a line, CSV or Parquet.", where=name)
    separator = max((b",", b"\t", b";"), key=first.count)
    if first.count(separator):
        kind = "tabs" if separator == b"\t" else f"{separator.decode()!r}"
        raise UserError(
            f"looks like a table (CSV) with columns split by {kind}, not like JSON.", "Rename it to .csv.", where=name
        )
    beginning = first[:30].decode("utf-8", "replace")
    problem = f"is not JSON: it begins with {beginning!r}."
    raise UserError(problem, "Give one JSON object a line, a JSON list of objects, CSV or Parquet.", where=name)


def _parses(line: bytes) -> bool:
    """Whether a line is one value of JSON."""
    try:
        whole_value(decode_line(line, 0))
    except (json.JSONDecodeError, RecordError):
        return False
    return True
