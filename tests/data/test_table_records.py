"""Records come out of Parquet, Arrow and the hub as they went in: without the nulls, texts and pairs of columns."""

import hashlib
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simpo_cli.data import hub
from simpo_cli.data.file_bytes import FileReceipt
from simpo_cli.data.pair import BadRecord, RawRecord
from tests.data.pair_files import fields_of, load_pairs, read, refusal, write_table

PAIR = {"prompt": "When does it rain?", "chosen": "In May.", "rejected": "Never."}
TOOLS = [
    {"name": "rain", "parameters": {"properties": {"town": {"type": "string"}}, "required": ["town"]}},
    {"name": "wind", "parameters": {"properties": {"hour": {"type": "integer"}, "unit": {"type": "string"}}}},
]


@pytest.fixture(params=["a.parquet", "a.arrow", "stream.arrow"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[pa.Table], list[RawRecord | BadRecord]]:
    """The records that a table gives back from a file."""

    def through(table: pa.Table) -> list[RawRecord | BadRecord]:
        path = tmp_path / request.param
        write_table(table, path)
        records, receipt = read(path)
        assert receipt.identity == hashlib.sha256(path.read_bytes()).hexdigest()
        assert [record.where for record in records] == [f"{path}, record {n}" for n in range(1, len(records) + 1)]
        return records

    return through


Kept = Callable[[pa.Table], list[RawRecord | BadRecord]]


def test_rows_of_several_batches(kept: Kept) -> None:
    rows = [{"prompt": f"p{i}", "chosen": [{"role": "user", "content": "ä"}], "score": 4.5} for i in range(600)]
    assert fields_of(kept(pa.Table.from_pylist(rows))) == rows


def test_a_parquet_file_may_have_any_name(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([PAIR]), tmp_path / "a.jsonl")
    records, receipt = read(tmp_path / "a.jsonl")
    assert fields_of(records) == [PAIR]
    assert list(receipt.warnings) == [f"{tmp_path / 'a.jsonl'} is a Parquet file, whatever its name says"]


def test_text_that_is_not_utf8_is_a_bad_record(kept: Kept) -> None:
    texts = pa.array([b"good", b"b\xe9d", b"fine"], pa.binary()).buffers()
    records = kept(pa.table({"prompt": pa.Array.from_buffers(pa.string(), 3, texts, null_count=0)}))
    assert [type(record) for record in records] == [RawRecord, BadRecord, RawRecord]


def test_keys_that_an_object_did_not_have_are_not_there(kept: Kept) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "rain", "arguments": {"town": "Faro"}}}]}
    bare = {"role": "assistant", "tool_calls": [{"function": {"name": "wind", "arguments": {}}}]}
    rows = [
        {**PAIR, "tools": TOOLS[:1], "history": [{"role": "user", "content": "hi"}, call], "meta": {"a": 1}},
        {**PAIR, "tools": TOOLS, "history": [bare], "meta": {"b": [None, "x"]}},
        {**PAIR, "tools": None, "history": [], "meta": None},
    ]
    assert fields_of(kept(pa.Table.from_pylist(rows))) == rows


def test_a_column_of_nulls_stays(kept: Kept) -> None:
    rows = [{**PAIR, "system": None, "tools": None}]
    assert fields_of(kept(pa.Table.from_pylist(rows))) == rows


def test_what_datasets_keeps_as_json_comes_out_as_it_went_in(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    texts = {name: datasets.Value("string") for name in PAIR}
    rows: list[dict[str, Any]] = [
        {**PAIR, "tools": [{"name": "rain", "default": None}, TOOLS[1]], "meta": {"a": [1, None], "b": "2.5"}},
        {**PAIR, "tools": [], "meta": [1]},
    ]
    features = datasets.Features({**texts, "tools": datasets.List(datasets.Json()), "meta": datasets.Json()})
    dataset = datasets.Dataset.from_list(rows, features=features)
    assert fields_of(kept(dataset.data.table)) == rows
    dataset.save_to_disk(str(tmp_path / "saved"))
    assert [json.loads(pair.tools or "[]") for pair in load_pairs(str(tmp_path / "saved"), role="train").pairs] == [
        row["tools"] for row in rows
    ]
    monkeypatch.setattr(hub, "_load", lambda *_: dataset)
    assert fields_of(list(hub.read_hub("org/name", "train", FileReceipt("org/name")))) == rows


def test_json_is_known_by_the_features_where_the_library_does_not_know_its_type(kept: Kept) -> None:
    said = {"info": {"features": {"tools": {"_type": "Json"}, "more": {"feature": {"_type": "Json"}, "_type": "List"}}}}
    row = {**PAIR, "tools": '[{"name": "rain", "default": null}]', "more": ['{"a": 1}', "3"]}
    table = pa.Table.from_pylist([row, {**row, "tools": "{oops"}])
    good, bad = kept(table.replace_schema_metadata({"huggingface": json.dumps(said)}))
    assert isinstance(good, RawRecord)
    assert (good.fields["tools"], good.fields["more"]) == ([{"name": "rain", "default": None}], [{"a": 1}, 3])
    assert isinstance(bad, BadRecord)
    assert "is not JSON" in bad.problem


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pa.array([Decimal("4.50"), None, Decimal("2.00")]), [4.5, None, 2]),
        (pa.array([1.5, float("nan"), None]), [1.5, None, None]),
        (pa.array([1.5, float("nan"), 2.0], pa.float16()), [1.5, None, 2.0]),
        (pa.array([[1.0, float("nan")], [], None]), [[1.0, None], [], None]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
        (pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64())), [{"a": 1}, {}, None]),
        (pa.array([{"a": Decimal(1)}, {"a": None}, {}]), [{"a": 1}, {}, {}]),
    ],
)
def test_values_of_columns_are_values_of_records(kept: Kept, column: pa.Array, values: list[Any]) -> None:
    found = fields_of(kept(pa.table({"x": column})))
    assert [row["x"] for row in found] == values
    assert all(type(row["x"]) is type(value) for row, value in zip(found, values, strict=True))


def test_a_map_with_a_key_twice_refuses_its_record(kept: Kept) -> None:
    column = pa.array([[("a", 1), ("a", 2)], [("a", 1)]], pa.map_(pa.string(), pa.int64()))
    assert [type(record) for record in kept(pa.table({"x": column}))] == [BadRecord, RawRecord]


def test_messages_and_tools_as_json_text_are_decoded(kept: Kept) -> None:
    turns = [{"role": "user", "content": "hi"}]
    row = {**PAIR, "prompt": json.dumps(turns), "tools": [json.dumps(tool) for tool in TOOLS]}
    assert fields_of(kept(pa.Table.from_pylist([row, {**row, "prompt": None, "tools": []}]))) == [
        {**PAIR, "prompt": turns, "tools": TOOLS},
        {**PAIR, "prompt": None, "tools": []},
    ]


def test_a_page_that_does_not_match_its_checksum_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{**PAIR, "prompt": f"Question {n}?"} for n in range(500)])
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, write_page_checksum=True, compression=None, use_dictionary=False)
    assert len(load_pairs(str(path), role="train").pairs) == 500
    content = path.read_bytes()
    path.write_bytes(content.replace(b"Question 123?", b"Question 124?"))
    error = refusal(str(path), on_bad_record="skip")
    assert error.where == str(path)
    assert error.problem == "is not a whole Parquet file: a page does not match its checksum."
