"""What a file is that holds no pairs, seen from its first bytes, and what to do with it."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from itertools import islice
from typing import Any

from simpo_cli.data.file_bytes import GZIP_MAGIC, ZSTD_MAGIC
from simpo_cli.data.json_records import BOM, decode_line, whole_value
from simpo_cli.data.raw import RecordError
from simpo_cli.errors import UserError
from simpo_cli.names import misfit
from simpo_cli.recipe.schema import Recipe

_PAIRS = "Preference pairs come as JSON, CSV or Parquet."
_MODEL = "A model's folder belongs under model.path in the recipe; as data, name a file of preference pairs."
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
    (b"GGUF", "model weights (GGUF)", _MODEL),
    (b"version https://git-lfs", "a pointer of Git LFS, not the data", "Fetch the data with git lfs pull."),
)
_IN_ZIP = (
    (rb"xl/|\[Content_Types\]", "an Excel sheet (.xlsx)", "Save the sheet as CSV UTF-8."),
    (rb"data\.pkl|/version|\.data/", "model weights (PyTorch)", _MODEL),
    (rb"", "a zip archive", "Unpack it with unzip, and name the file inside."),
)
_UTF16 = "Re-encode it as UTF-8, such as with iconv -f utf-16 -t utf-8."

_DESCRIBED = "Name the data file that it describes, or the folder."
_OTHER_OBJECTS = (
    ({"architectures"}, "the configuration of a model", _MODEL),
    ({"model_type"}, "the configuration of a model", _MODEL),
    ({"peft_type"}, "the configuration of an adapter", _MODEL),
    ({"tokenizer_class"}, "the configuration of a tokenizer", _MODEL),
    ({"added_tokens", "model"}, "a tokenizer", _MODEL),
    ({"weight_map"}, "the index of a model's weights", _MODEL),
    ({"transformers_version"}, "the generation configuration of a model", _MODEL),
    ({"log_history"}, "the state of a trainer", "As data, name a file of preference pairs."),
    ({"_data_files", "_fingerprint"}, "the state of a saved data set", _DESCRIBED),
    ({"features", "citation"}, "the description of a data set", _DESCRIBED),
    ({"nbformat", "cells"}, "a notebook of Jupyter", "As data, name a file of preference pairs."),
)
"""Objects that are no data: keys that they have, what they are, what to do."""
_DESCRIPTIONS = ({"file_name"}, {"hf_hub_url"}, {"ms_hub_url"}, {"script_url"}, {"features", "splits"})
_ERROR_KEYS = {"error", "detail", "message", "status", "statusCode", "status_code", "code"}


def refuse_other_kinds(start: bytes, name: str) -> None:
    """Refuse a file that is empty, or by its first bytes no file of records.

    Raises:
        UserError: names the kind.
    """
    if not start or start.removeprefix(BOM).isspace() or start == BOM:
        if len(start) < 2**16:
            raise UserError("holds no records: it is empty.", "Name a file with preference pairs.", where=name)
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
        raise UserError("is model weights (safetensors).", _MODEL, where=name)
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


def refuse_other_text(start: bytes, name: str) -> None:
    """Refuse a file of text that is no JSON at all; single records that are not JSON are refused by the reader.

    Raises:
        UserError: names what it looks like.
    """
    lines = [line for line in start.split(b"\n", 20)[:20] if line.strip()]
    if not lines or any(line.lstrip()[:1] in (b"{", b"[") or parses(line) for line in lines):
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
    raise UserError(
        f"is not JSON: it begins with {beginning!r}.",
        "Give one JSON object a line, a JSON list of objects, CSV or Parquet.",
        where=name,
    )


def refuse_other_objects(value: Mapping[str, Any], name: str) -> None:
    """Refuse a JSON object that is no data, going by its keys.

    Args:
        value: the one object of a file, without the fields of a pair.
        name: the file, for messages.

    Raises:
        UserError: names what it is.
    """
    if {"model", "data"} <= value.keys():
        raise misfit(name, "recipe", "pairs")
    for keys, what, fix in _OTHER_OBJECTS:
        if keys <= value.keys():
            raise UserError(f"is {what}, not data.", fix, where=name)
    entries = list(islice(value.values(), 100))
    if entries and all(isinstance(e, dict) and any(keys <= e.keys() for keys in _DESCRIPTIONS) for e in entries):
        raise UserError("describes data sets and holds no pairs itself.", _DESCRIBED, where=name)
    said = next((entry for entry in entries if isinstance(entry, str)), None)
    if said is not None and value.keys() <= _ERROR_KEYS:
        raise UserError(
            f"is an error message of a server, not data: {said[:100]!r}.",
            "Fetch the file again; gated data needs a login.",
            where=name,
        )


def parses(line: bytes) -> bool:
    """Whether a line is one value of JSON."""
    try:
        whole_value(decode_line(line, 0))
    except (json.JSONDecodeError, RecordError):
        return False
    return True
