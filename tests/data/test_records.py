"""Files to records: every container gives the same records, as streams, with their places."""

import csv
import gzip
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from simpo_cli.data.file_bytes import FileReceipt
from simpo_cli.data.json_records import read_json_array, read_json_lines
from simpo_cli.data.pair import BadRecord, RawRecord
from simpo_cli.data.records import read_records
from simpo_cli.errors import UserError

RECORDS = [
    {"prompt": "a\u2028b", "chosen": "ja, äöü 你好 🙂", "rejected": 'quote " and \\ and \n newline'},
    {"prompt": "2024-01-01", "chosen": "4.5", "rejected": "x", "n": 3, "list": [1, {"deep": [None, True]}]},
    {"prompt": "", "chosen": "c", "rejected": "[1, 2"},
]


def read(path: str | Path) -> tuple[list[RawRecord | BadRecord], FileReceipt]:
    receipt = FileReceipt(str(path))
    records, finish = read_records(str(path), receipt)
    found = list(records)
    if finish is not None:
        finish()
    return found, receipt


def fields(path: str | Path) -> list[dict[str, Any]]:
    records, _ = read(path)
    assert all(isinstance(record, RawRecord) for record in records), records
    return [record.fields for record in records if isinstance(record, RawRecord)]


def lines_of(records: list[Any], ensure_ascii: bool = False) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=ensure_ascii) + "\n" for record in records).encode()


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a", "a.txt"])
@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_json_lines_are_read_whatever_the_file_is_called(tmp_path: Path, name: str, ensure_ascii: bool) -> None:
    (tmp_path / name).write_bytes(lines_of(RECORDS, ensure_ascii))
    assert fields(tmp_path / name) == RECORDS


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_json_array_is_read_in_any_layout(tmp_path: Path, indent: int | None, name: str) -> None:
    (tmp_path / name).write_text(json.dumps(RECORDS, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert fields(tmp_path / name) == RECORDS


def test_compression_is_seen_from_the_content(tmp_path: Path) -> None:
    data = lines_of(RECORDS)
    packed = {
        "a.jsonl.gz": gzip.compress(data),
        "two-members.jsonl.gz": gzip.compress(data[:50]) + gzip.compress(data[50:]),
        "padded.jsonl.gz": gzip.compress(data) + bytes(512),
        "no-suffix-at-all": gzip.compress(data),
        "a.jsonl.zst": zstandard.compress(data),
        "two-frames.zst": zstandard.compress(data[:50]) + zstandard.compress(data[50:]),
        "a.json.gz": gzip.compress(json.dumps(RECORDS).encode()),
    }
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
        assert fields(tmp_path / name) == RECORDS, name


def test_large_members_are_unpacked_piece_by_piece(tmp_path: Path) -> None:
    record = {"prompt": "p", "chosen": "x" * 3_000_000, "rejected": "y" * 2_500_000}
    for name, content in (
        ("a.jsonl.gz", gzip.compress(lines_of([record] * 3))),
        ("a.jsonl.zst", zstandard.compress(lines_of([record] * 3))),
        ("a.json.gz", gzip.compress(json.dumps([record] * 3).encode())),
    ):
        (tmp_path / name).write_bytes(content)
        assert fields(tmp_path / name) == [record] * 3, name


def test_places_count_lines_and_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\n" + lines_of(RECORDS).replace(b"\n", b"\r\n\r\n")[:-4])
    records, _ = read(path)
    assert [record.where for record in records] == [f"{path}:2", f"{path}:4", f"{path}:6"]
    array = tmp_path / "a.json"
    array.write_text(json.dumps(RECORDS))
    records, _ = read(array)
    assert [record.where for record in records] == [f"{array}, record {n}" for n in (1, 2, 3)]


def test_the_receipt_holds_the_hash_of_the_bytes_on_disk(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", lines_of(RECORDS)), ("b.jsonl.gz", gzip.compress(lines_of(RECORDS * 5000)))):
        path = tmp_path / name
        path.write_bytes(content)
        receipt = FileReceipt(name)
        records, finish = read_records(str(path), receipt)
        next(records)  # leaving early, as max_pairs does, still hashes the whole
        assert finish is not None
        finish()
        assert receipt.identity == hashlib.sha256(content).hexdigest()
        assert receipt.size == len(content)


def test_a_file_that_changes_under_the_reader_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(RECORDS))
    records, _ = read_records(str(path), FileReceipt("a.jsonl"))
    next(records)
    path.write_bytes(lines_of(RECORDS * 2))
    with pytest.raises(UserError, match="changed while it was read"):
        list(records)


def test_a_file_that_is_replaced_under_the_reader_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(RECORDS))
    records, _ = read_records(str(path), FileReceipt("a.jsonl"))
    next(records)
    (tmp_path / "b.jsonl").write_bytes(lines_of(RECORDS))
    (tmp_path / "b.jsonl").replace(path)
    with pytest.raises(UserError, match="changed while it was read"):
        list(records)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_table_that_changes_under_the_reader_is_refused(tmp_path: Path, name: str) -> None:
    table = pa.Table.from_pylist(RECORDS[:1] * 600)

    def write(path: Path) -> None:
        if path.suffix == ".parquet":
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)

    write(tmp_path / name)
    records, _ = read_records(str(tmp_path / name), FileReceipt(name))
    next(records)
    write(tmp_path / f"other-{name}")
    (tmp_path / f"other-{name}").replace(tmp_path / name)
    with pytest.raises(UserError, match="changed while it was read"):
        list(records)


def test_a_number_that_is_cut_by_the_end_of_a_piece_is_one_number() -> None:
    records = list(read_json_array(iter([b"[12", b'3, {"a": 1}, 4', b"5]"]), "a.json"))
    assert [record.where for record in records] == [f"a.json, record {n}" for n in (1, 2, 3)]
    assert [record.text for record in records] == ["123", '{"a": 1}', "45"]


# Tables


def test_csv_gives_texts(tmp_path: Path) -> None:
    rows = [
        {"prompt": 'line\nbreak, "quoted"', "chosen": "4.5", "rejected": "2024-01-01"},
        dict.fromkeys(RECORDS[0], "x"),
    ]
    for separator in ",;\t":
        text = io.StringIO()
        writer = csv.DictWriter(text, ["prompt", "chosen", "rejected"], delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
        for name, prefix in (("a.csv", ""), ("b.tsv", "\ufeff")):
            (tmp_path / name).write_bytes((prefix + text.getvalue()).encode())
            assert fields(tmp_path / name) == rows
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(text.getvalue().encode()))
    records, _ = read(tmp_path / "c.csv.gz")
    assert [record.where.rsplit(":")[-1] for record in records] == ["2", "4"]


def test_csv_troubles_are_records(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'prompt,chosen,rejected\na,b,c\na,b\n\na,b,c,d\na,"b"x,c\na,\xe9,c\na,b\x00,c\na,b,c\n')
    records, _ = read(path)
    bad = {record.where.split(":")[-1]: record.problem for record in records if isinstance(record, BadRecord)}
    assert list(bad) == ["3", "5", "6", "7", "8"]
    assert bad["3"] == "2 fields, but the header has 3"
    assert "not valid CSV" in bad["6"]
    assert bad["7"] == "not UTF-8 at byte 53 of the file (0xe9)"
    assert "NUL" in bad["8"]
    assert sum(isinstance(record, RawRecord) for record in records) == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a,a,b\n1,2,3\n", "two columns are named 'a'"),
        (b'prompt,chosen,rejected\na,b,c\na,"b,c\nd,e,f\n', "a double quote opens here and is not closed"),
        (b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "holds JSON, not CSV"),
    ],
)
def test_csv_files_that_cannot_be_read(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=problem):
        read(tmp_path / "a.csv")


def test_parquet_and_arrow(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "chosen": [{"role": "user", "content": "ä"}], "score": 4.5} for i in range(600)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(tmp_path / "stream.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow", "stream.arrow"):
        assert fields(tmp_path / name) == rows
        records, receipt = read(tmp_path / name)
        assert records[599].where == f"{tmp_path / name}, record 600"
        assert receipt.identity == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_a_parquet_file_may_have_any_name(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"prompt": "p"}]), tmp_path / "a.jsonl")
    records, receipt = read(tmp_path / "a.jsonl")
    assert isinstance(records[0], RawRecord)
    assert records[0].fields == {"prompt": "p"}
    assert list(receipt.warnings) == [f"{tmp_path / 'a.jsonl'} is a Parquet file, whatever its name says"]


def test_text_that_is_not_utf8_in_a_parquet_file_is_a_bad_record(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(
        pa.string(), 3, pa.array([b"good", b"b\xe9d", b"fine"], pa.binary()).buffers(), null_count=0
    )
    pq.write_table(pa.table({"prompt": texts}), tmp_path / "a.parquet")
    records, _ = read(tmp_path / "a.parquet")
    assert [type(record) for record in records] == [RawRecord, BadRecord, RawRecord]


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
    path.write_bytes(lines_of(RECORDS))
    code = (
        "import sys; from simpo_cli.data.records import FileReceipt, read_records\n"
        f"list(read_records({str(path)!r}, FileReceipt('a'))[0])\n"
        "print([m for m in ('torch', 'datasets', 'pyarrow', 'pandas', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
