"""Files that are one JSON object: read where that is certain, and otherwise refused with a command that mends them."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.data import json_objects
from simpo_cli.data.json_objects import read_object
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataSource
from tests.data.pair_files import Write, fields_of, lines_of, load_pairs, read, refusal

Rows = list[dict[str, Any]]


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


TEXTS: Rows = [{"prompt": f"How high is hill {n}?", "chosen": f"{n} m.", "rejected": "No idea."} for n in range(3)]
TURNS: Rows = [
    {
        "prompt": [said("user", row["prompt"])],
        "chosen": [said("assistant", row["chosen"])],
        "rejected": [said("assistant", row["rejected"])],
    }
    for row in TEXTS
]
MESSAGES: Rows = [
    {"prompt": row["prompt"], "chosen": turns["chosen"][0], "rejected": turns["rejected"][0]}
    for row, turns in zip(TEXTS, TURNS, strict=True)
]
OWN: Rows = [{"frage": row["prompt"], "gut": row["chosen"], "schlecht": row["rejected"]} for row in TEXTS]
OWN_COLUMNS = {"prompt": "frage", "chosen": "gut", "rejected": "schlecht"}


def of_lists(rows: Rows) -> dict[str, Any]:
    return {key: [row[key] for row in rows] for key in rows[0]}


def by_number(rows: Rows) -> dict[str, Any]:
    return {key: {str(n): row[key] for n, row in enumerate(rows)} for key in rows[0]}


def by_id(rows: Rows) -> dict[str, Any]:
    return {f"hill-{n}": row for n, row in enumerate(rows)}


def numbered(rows: Rows) -> dict[str, Any]:
    return {str(n): row for n, row in enumerate(rows)}


def split(rows: Rows) -> dict[str, Any]:
    return {"columns": list(rows[0]), "index": list(range(len(rows))), "data": [list(row.values()) for row in rows]}


def in_pieces(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


def chosen(path: str, columns: dict[str, str] | None = None) -> list[str]:
    return [pair.chosen for pair in load_pairs([DataSource(path=path, columns=columns or {})], role="train").pairs]


CHOSEN = [row["chosen"] for row in TEXTS]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("form", [of_lists, by_number, by_id, numbered, split])
@pytest.mark.parametrize("rows", [TEXTS, TURNS, MESSAGES, OWN], ids=["texts", "turns", "messages", "own names"])
def test_records_in_columns_and_under_ids_are_read(
    write: Write, form: Callable[[Rows], dict[str, Any]], rows: Rows, indent: int | None
) -> None:
    path = write("a.json", json.dumps(form(rows), indent=indent))
    if rows is OWN and form is by_id:
        assert "is a record or a column is not certain" in refusal(path).problem
        return
    assert chosen(path, OWN_COLUMNS if rows is OWN else None) == CHOSEN


def test_each_record_has_its_number_and_null_cells_stay(write: Write) -> None:
    rows = [{**TEXTS[0], "score": 2, "system": None}, {**TEXTS[1], "score": None, "system": None}]
    path = write("a.json.gz", json.dumps(of_lists(rows)))
    records, _ = read(path)
    assert [record.where for record in records] == [f"{path}, record 1", f"{path}, record 2"]
    assert fields_of(records) == rows


ONE_RECORD = [
    TURNS[0],
    {key: turns[0] for key, turns in TURNS[0].items()},
    {**TURNS[0], "tags": ["hills"]},
    {"tools": [{"name": "height"}], **TURNS[0]},
    {"chosen": [*TURNS[0]["prompt"], *TURNS[0]["chosen"]], "rejected": [*TURNS[0]["prompt"], *TURNS[0]["rejected"]]},
    {"instruction": "Which?", "completions": [{"response": "0 m.", "score": 2}, {"response": "1 m.", "score": 1}]},
    {"prompt": "Which?", "responses": ["0 m.", "1 m."], "scores": [2, 1]},
    {**TEXTS[0], "like": [TEXTS[1]]},
]


@pytest.mark.parametrize("record", ONE_RECORD)
def test_a_file_of_one_record_is_no_table(write: Write, record: dict[str, Any]) -> None:
    for ending in ("", "\n", "\r\n\n"):
        assert chosen(write("a.jsonl", json.dumps(record) + ending)) == CHOSEN[:1]
    assert "JSON objects over several lines" in refusal(write("b.json", json.dumps(record, indent=2))).problem


@pytest.mark.parametrize("first", ["tags", "tools", "context", "metadata", "data", "rows"])
@pytest.mark.parametrize("size", [20, 2_000_000])
def test_lines_may_begin_with_a_list_of_objects(write: Write, first: str, size: int) -> None:
    rows = [{first: [{"name": "x" * size}], **row} for row in TEXTS[:2]]
    for ending in ("\n", "\r\n"):
        assert chosen(write("a.jsonl", lines_of(rows).replace(b"\n", ending.encode()))) == CHOSEN[:2]


WRAPPED = {
    "under data": ({"data": TEXTS}, "'data'", 3),
    "behind other keys": ({"version": 1, "errors": ["none"], "rows": TEXTS}, "'rows'", 3),
    "deep": ({"result": {"page": {"items": TEXTS}}}, "'result.page.items'", 3),
    "under a key with blanks and quotes": ({"my pairs' list": TEXTS}, "my pairs' list", 3),
    "of the server of data sets": (
        {"features": [{"name": "prompt"}], "rows": [{"row_idx": n, "row": row} for n, row in enumerate(TEXTS)]},
        "'rows'",
        3,
    ),
    "two splits": ({"train": TEXTS, "test": TEXTS[:1]}, "'train' and 'test'", 3),
    "two splits of equal length": ({"train": TEXTS, "test": TEXTS}, "'train' and 'test'", 3),
    "two splits in columns": ({"train": of_lists(TEXTS), "test": of_lists(TEXTS)}, "'train' and 'test'", 3),
    "two splits by number": ({"train": by_number(TEXTS), "test": by_number(TEXTS)}, "'train' and 'test'", 3),
    "two splits under ids": ({"train": numbered(TEXTS), "test": numbered(TEXTS)}, "'train' and 'test'", 3),
    "many groups": ({f"g{n}": TEXTS[:1] for n in range(5)}, "'g0' and 'g1' and 'g2' and 2 more", 5),
    "own names": ({"data": OWN}, "under 'data' it holds objects with the fields frage, gut, schlecht", 3),
    "a column that is none": ({**of_lists(TEXTS), "title": "hills"}, "title beside them holds no column", 3),
    "objects over several lines": (TEXTS[0], "JSON objects over several lines", 1),
    "ids and unknown names": (by_id(OWN), "whether 'hill-0' is a record or a column is not certain", 3),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_what_is_wrapped_is_refused_with_a_command_that_unwraps_it(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, suffix: str
) -> None:
    value, problem, count = WRAPPED[name]
    monkeypatch.chdir(tmp_path)
    write(f"my data{suffix}", json.dumps(value, indent=1 if name.startswith("objects") else None))
    error = refusal(f"my data{suffix}")
    assert problem in error.problem
    command = error.fix[error.fix.index("jq -c" if suffix == ".json" else "gzip -dc") :].split(". If it is")[0]
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    output = command.split(" > ")[1].split(";")[0].strip()
    columns = OWN_COLUMNS if value in (WRAPPED["own names"][0], by_id(OWN)) else None
    assert chosen(output, columns) == (CHOSEN[:1] * 5 if count == 5 else CHOSEN[:count])


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({**of_lists(TEXTS), "chosen": ["0 m."]}, "not of equal length: prompt 3, chosen 1, rejected 3"),
        (
            {**by_number(TEXTS), "rejected": {"0": "No.", "7": "No."}},
            "only one of 'prompt' and 'rejected' has the row '1'",
        ),
        ({"architectures": ["X"], "hidden_size": 8}, "is the configuration of a model, not data"),
        ({"peft_type": "LORA", "r": 8}, "is the configuration of an adapter"),
        ({"version": "1.0", "added_tokens": [{"id": 0}], "model": {}}, "is a tokenizer"),
        ({"hills": {"file_name": "hills.json", "ranking": True}}, "describes data sets"),
        ({"default": {"features": {}, "splits": {}}}, "describes data sets"),
        ({"error": "Access to this data set is restricted."}, "is an error message of a server, not data: 'Access"),
        ({"nbformat": 4, "cells": []}, "is a notebook of Jupyter"),
        ({"name": "a", "model": {"path": "m"}, "data": {"train": "t"}}, "is a recipe"),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_objects_that_hold_no_records_are_named(
    write: Write, value: dict[str, Any], problem: str, indent: int | None
) -> None:
    assert problem in refusal(write("a.json", json.dumps(value, indent=indent))).problem


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (of_lists(TEXTS * 9), "its records in columns"),
        (by_number(TEXTS * 9), "its records in columns"),
        (by_id(TEXTS * 9), "its records under their ids"),
        (split(TEXTS * 9), "its records beside their columns"),
        ({"n": 27, "data": TEXTS * 9}, "holds its records under 'data'"),
    ],
)
def test_of_an_object_that_is_too_large_the_beginning_says_what_it_is(
    monkeypatch: pytest.MonkeyPatch, value: dict[str, Any], problem: str
) -> None:
    monkeypatch.setattr(json_objects, "MAX_RECORD_BYTES", 400)
    content = json.dumps(value).encode()
    for size in (100, len(content)):
        with pytest.raises(UserError) as caught:
            read_object(in_pieces(content, size), "a.json")
        assert problem in caught.value.problem
        assert "jq -c" in caught.value.fix


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("value", [of_lists(TEXTS), by_number(TURNS), {"prompt": "a", "chosen": "b", "rejected": "c"}])
def test_an_object_reads_the_same_however_it_is_cut_into_pieces(value: dict[str, Any], size: int) -> None:
    content = json.dumps(value, ensure_ascii=False).encode() + b"\n"
    records, chunks = read_object(in_pieces(content, size), "a.json")
    assert (records is None) == ("a" in value.values())
    assert b"".join(chunks) == content


def test_values_that_are_not_taken_are_refused_in_columns_as_well(write: Write) -> None:
    for content, problem in (
        ('{"prompt": {"a": 1,\n"a": 2}}', "the key 'a' occurs twice"),
        ('{"score": {"0": NaN},\n"prompt": {"0": ""}}', "NaN is not a value of JSON"),
        (b'{"prompt": ["a", "b"], "chosen": ["h\xe9", "c"], "rejected": ["d", "e"]}', "not UTF-8 at byte 36"),
    ):
        assert problem in refusal(write("a.json", content)).problem


def test_lines_that_end_in_a_carriage_return_alone(write: Write) -> None:
    for ending in (b"\r", b" \r\r"):
        assert chosen(write("a.jsonl", lines_of(TEXTS).replace(b"\n", ending))) == CHOSEN
    assert "a bare control character" in refusal(write("a.jsonl", '{"prompt": "a\rb"}')).problem
