"""Files of preference pairs, their pairs in memory with the account of the records, and pairs to be stored."""

import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simpo_cli.data.file_bytes import FileReceipt
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import BadRecord, EncodedPair, PreferencePair, RawRecord
from simpo_cli.data.records import read_records
from simpo_cli.data.store import EncodedSource, encode_source
from simpo_cli.data.store.pairs import PairWriter, StoredPairs
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.schema import DataRecipe, DataSource

GOOD = {"prompt": "What is the sky?", "chosen": "It is blue.", "rejected": "It is green."}

Write = Callable[..., str]


def write_pairs(folder: Path, name: str, content: bytes | str | list[Any]) -> str:
    """Write a file and return its path: bytes and text as they are, a list of records by the name's suffix."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = array_of(content) if ".json" in path.suffixes else lines_of(content)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def lines_of(records: Sequence[Any]) -> bytes:
    """Records one a line; a record that is text or bytes already is written as it is."""
    return b"".join(_written(record) + b"\n" for record in records)


def array_of(records: Sequence[Any]) -> bytes:
    """Records as one JSON list."""
    return b"[" + b",\n".join(map(_written, records)) + b"]"


def _written(record: Any) -> bytes:
    if isinstance(record, bytes):
        return record
    return (record if isinstance(record, str) else json.dumps(record)).encode()


def write_table(table: Any, path: Path) -> None:
    """Write a table as Parquet or as Arrow; as a stream of Arrow where the name says so."""
    import pyarrow as pa  # not above: the benchmark of loading uses the rest, and measures memory
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    make = pa.ipc.new_stream if path.name.startswith("stream") else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
        writer.write_table(table)


def read(path: str | Path) -> tuple[list[RawRecord | BadRecord], FileReceipt]:
    """The records of a file, and its receipt, which is complete."""
    receipt = FileReceipt(str(path))
    records, finish = read_records(str(path), receipt)
    found = list(records)
    if finish is not None:
        finish()
    return found, receipt


def fields_of(records: Sequence[RawRecord | BadRecord]) -> list[dict[str, Any]]:
    """The fields of records, of which none is a bad one."""
    assert all(isinstance(record, RawRecord) for record in records), records
    return [record.fields for record in records if isinstance(record, RawRecord)]


class LoadedPairs:
    """The pairs of all sources, repeated as the sources say, and what became of every record."""

    def __init__(self, reader: PairReader) -> None:
        self.pairs: list[PreferencePair] = []
        for source in reader.sources:
            self.pairs += list(reader.read_source(source)) * source.repeat
        reader.require_pairs()
        self.bad_records, self.records_read, self.decision = reader.bad_records, reader.records_read, reader.decision
        self.dropped, self.warnings = reader.dropped.counts, reader.warnings.counts
        self.files = [(file.path, file.identity, file.size) for file in reader.files]


def load_pairs(sources: str | Sequence[DataSource], **options: Any) -> LoadedPairs:
    return LoadedPairs(PairReader(sources, **options))


def refusal(sources: str | Sequence[DataSource], **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        load_pairs(sources, role="train", **options)
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.fix
    return caught.value


def skipped(path: str) -> LoadedPairs:
    return load_pairs(path, role="train", on_bad_record="skip")


DATA = DataRecipe(train="-", max_length=48, max_prompt_length=24)


def records(count: int, seed: int = 0) -> list[dict[str, str]]:
    draw = random.Random(seed)
    words = ["open", "settings", "choose", "people", "<|im_end|>", "naïve", "press", "the", "address", "🙂"]

    def text(most: int) -> str:
        return " ".join(draw.choice(words) for _ in range(draw.randint(1, most)))

    return [
        {"prompt": f"{draw.randrange(count)} {text(30)}", "chosen": text(40), "rejected": text(9)} for _ in range(count)
    ]


def encoded(path: str | list[DataSource], tokenizer: TextTokenizer, data: DataRecipe = DATA) -> EncodedSource:
    sources = [DataSource(path=path)] if isinstance(path, str) else path
    return encode_source(sources, "train", data, tokenizer)


def plain(pair: EncodedPair) -> tuple[Any, ...]:
    tokens = (pair.prompt.tolist(), pair.chosen.tolist(), pair.rejected.tolist())
    return (*tokens, pair.prompt_key, pair.where, pair.prompt_cut, pair.chosen_cut, pair.rejected_cut, pair.pair_key)


def made_up(count: int, seed: int) -> list[EncodedPair]:
    draw = np.random.default_rng(seed)

    def ids() -> np.ndarray:
        return draw.integers(0, 2**31 - 1, draw.integers(1, 9), dtype=np.int32)

    flags = draw.integers(0, 2, (count, 3)).astype(bool).tolist()
    keys = [f"{int(key):016x}" for key in draw.integers(0, 2**64, count, dtype=np.uint64)]
    texts = [draw.bytes(16).hex() for _ in range(count)]
    places = ["a.jsonl:17", "b c.json, record 3", "中文/🙂.csv:1", "\udcff.jsonl:2", ""]
    return [
        EncodedPair(ids(), ids(), ids(), keys[i], places[i % len(places)], *flags[i], texts[i]) for i in range(count)
    ]


def written(folder: Path, pairs: list[EncodedPair]) -> StoredPairs:
    folder.mkdir()
    writer = PairWriter(folder)
    for start in range(0, len(pairs), 7):
        writer.add(pairs[start : start + 7])
    writer.close()
    return StoredPairs.open(folder)
