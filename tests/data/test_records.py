"""Files to records: every container gives the same records, as streams, with their places."""

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from simpo_cli.data.file_bytes import FileReceipt
from simpo_cli.data.json_records import read_json_array, read_json_lines
from simpo_cli.data.pair import BadRecord, RawRecord
from simpo_cli.data.records import read_records
from simpo_cli.errors import UserError
from tests.data.pair_files import fields_of, lines_of, read, write_table

RECORDS = [
    {"prompt": "a\u2028b", "chosen": "ja, äöü 你好 🙂", "rejected": 'quote " and \\ and \n newline'},
    {"prompt": "2024-01-01", "chosen": "4.5", "rejected": "x", "n": 3, "list": [1, {"deep": [None, True]}]},
    {"prompt": "", "chosen": "c", "rejected": "[1, 2"},
]


def dumped(records: list[Any], indent: int | None = None) -> bytes:
    return json.dumps(records, indent=indent, ensure_ascii=False).encode()


def fields(path: Path, content: bytes) -> list[dict[str, Any]]:
    path.write_bytes(content)
    return fields_of(read(path)[0])


LINES = b"".join(dumped(record) + b"\n" for record in RECORDS)  # type: ignore[arg-type]
LONG = [{"prompt": "p", "chosen": "x" * 3_000_000, "rejected": "y" * 2_500_000}] * 3


@pytest.mark.parametrize("content", [LINES, lines_of(RECORDS), dumped(RECORDS), dumped(RECORDS, indent=2)])
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a", "a.txt"])
def test_json_is_read_whatever_the_file_is_called(tmp_path: Path, name: str, content: bytes) -> None:
    assert fields(tmp_path / name, content) == RECORDS


@pytest.mark.parametrize(
    ("name", "content", "records"),
    [
        ("a.jsonl.gz", gzip.compress(LINES), RECORDS),
        ("two-members.jsonl.gz", gzip.compress(LINES[:50]) + gzip.compress(LINES[50:]), RECORDS),
        ("padded.jsonl.gz", gzip.compress(LINES) + bytes(512), RECORDS),
        ("no-suffix-at-all", gzip.compress(LINES), RECORDS),
        ("a.jsonl.zst", zstandard.compress(LINES), RECORDS),
        ("two-frames.zst", zstandard.compress(LINES[:50]) + zstandard.compress(LINES[50:]), RECORDS),
        ("a.json.gz", gzip.compress(dumped(RECORDS)), RECORDS),
        # in several pieces
        ("long.jsonl.gz", gzip.compress(lines_of(LONG)), LONG),
        ("long.jsonl.zst", zstandard.compress(lines_of(LONG)), LONG),
        ("long.json.gz", gzip.compress(dumped(LONG)), LONG),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_compression_is_seen_from_the_content(tmp_path: Path, name: str, content: bytes, records: list[Any]) -> None:
    assert fields(tmp_path / name, content) == records


def test_places_count_lines_and_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\n" + LINES.replace(b"\n", b"\r\n\r\n")[:-4])
    assert [record.where for record in read(path)[0]] == [f"{path}:2", f"{path}:4", f"{path}:6"]
    path.write_bytes(dumped(RECORDS))
    assert [record.where for record in read(path)[0]] == [f"{path}, record {n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("content", [LINES, gzip.compress(LINES * 5000)], ids=["plain", "gz"])
def test_the_receipt_holds_the_hash_of_the_bytes_on_disk(tmp_path: Path, content: bytes) -> None:
    path, receipt = tmp_path / "a.jsonl", FileReceipt("a.jsonl")
    path.write_bytes(content)
    records, finish = read_records(str(path), receipt)
    next(records)  # leaving early, as max_pairs does, still hashes the whole
    assert finish is not None
    finish()
    assert receipt.identity == hashlib.sha256(content).hexdigest()
    assert receipt.size == len(content)


@pytest.mark.parametrize("is_replaced", [False, True])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_a_file_that_changes_under_the_reader_is_refused(tmp_path: Path, name: str, is_replaced: bool) -> None:
    path = tmp_path / name
    if name == "a.jsonl":
        path.write_bytes(LINES)
    else:
        write_table(pa.Table.from_pylist(RECORDS[:1] * 600), path)
    content = path.read_bytes()
    records, _ = read_records(str(path), FileReceipt(name))
    next(records)
    if is_replaced:
        path.unlink()
    path.write_bytes(content if is_replaced else content * 2)
    with pytest.raises(UserError, match="changed while it was read"):
        list(records)


def test_a_number_that_is_cut_by_the_end_of_a_piece_is_one_number() -> None:
    records = list(read_json_array(iter([b"[12", b'3, {"a": 1}, 4', b"5]"]), "a.json"))
    assert [record.where for record in records] == [f"a.json, record {n}" for n in (1, 2, 3)]
    assert [record.text for record in records] == ["123", '{"a": 1}', "45"]


# Any JSON at all

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(st.text(max_size=8), JSON_VALUES, max_size=4), max_size=6), st.data())
def test_an_array_reads_the_same_however_it_is_cut_into_pieces(
    records: list[dict[str, Any]], data: st.DataObject
) -> None:
    indent = data.draw(st.sampled_from([None, 1]))
    content = json.dumps(records, ensure_ascii=data.draw(st.booleans()), indent=indent).encode("utf-8", "surrogatepass")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=6)))
    pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    read_back = list(read_json_array(iter([p for p in pieces if p]), "a.json"))
    wanted = [record for record in records if record == json.loads(json.dumps(record))]
    if all(c < "\ud800" or c > "\udfff" for c in json.dumps(records, ensure_ascii=False)):
        assert [record.fields for record in read_back if isinstance(record, RawRecord)] == wanted
        assert not any(isinstance(record, BadRecord) for record in read_back)


@given(st.lists(st.one_of(st.binary(max_size=40), JSON_VALUES.map(lambda v: json.dumps(v).encode())), max_size=8))
def test_no_line_of_bytes_does_more_than_be_refused(lines: list[bytes]) -> None:
    content = b"\n".join(lines)
    records = list(read_json_lines(iter([content] if content else []), "a.jsonl"))
    blank = sum(not line.strip() for line in content.split(b"\n"))
    assert len(records) == len(content.split(b"\n")) - blank


@given(st.binary(max_size=200))
def test_no_array_of_bytes_does_more_than_be_refused(content: bytes) -> None:
    try:
        records = list(read_json_array(iter([b"[" + content]), "a.json"))
    except UserError:
        return
    assert all(isinstance(record, RawRecord | BadRecord) for record in records)


def test_reading_json_needs_no_columnar_library(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    code = (
        "import sys; from simpo_cli.data.records import FileReceipt, read_records\n"
        f"list(read_records({str(path)!r}, FileReceipt('a'))[0])\n"
        "print([m for m in ('torch', 'datasets', 'pyarrow', 'pandas', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
