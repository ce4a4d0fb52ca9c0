"""Archives and tables that explode: refused by what each says of itself, or once it has unpacked too much."""

import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from simpo_cli.data.load import PairReader
from simpo_cli.errors import UserError

LINE = b'{"prompt": "' + b"a " * 5_000 + b'", "chosen": "b", "rejected": "c"}\n'
MOST_MEMORY = 500 * 2**20
SCHEMA = pa.schema([(name, pa.large_string()) for name in ("prompt", "chosen", "rejected")])


def _gzip(path: Path, piece: bytes, count: int) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    with path.open("wb") as file:
        for _ in range(count):
            file.write(packer.compress(piece))
        file.write(packer.flush())


def _zstd(path: Path, piece: bytes, count: int) -> None:
    with path.open("wb") as file, zstandard.ZstdCompressor(level=3).stream_writer(file) as writer:
        for _ in range(count):
            writer.write(piece)


def _long_texts(count: int) -> pa.Table:
    text = "x" * (30 * 2**20)
    return pa.table({"prompt": [text] * count, "chosen": ["b"] * count, "rejected": ["c"] * count}, schema=SCHEMA)


def _parquet_of_long_texts(path: Path) -> None:
    pq.write_table(_long_texts(3), path, compression="zstd", use_dictionary=False)


def _parquet_of_one_row_repeated(path: Path) -> None:
    same = np.zeros(3_000_000, dtype=np.int32)
    columns = {name: pa.DictionaryArray.from_arrays(pa.array(same), pa.array(["a"])) for name in SCHEMA.names}
    pq.write_table(pa.table(columns), path, compression="zstd")


def _arrow_of_long_texts(path: Path, *, stream: bool = False, codec: str = "zstd") -> None:
    options = pa.ipc.IpcWriteOptions(compression=codec)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(path, SCHEMA, options=options) as writer:
        writer.write_table(_long_texts(3))


def _arrow_that_only_says_so(path: Path) -> None:
    """A few hundred bytes, of which a buffer claims to be 64 TiB."""
    with pa.ipc.new_file(path, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(pa.table({name: ["abc" * 99] for name in SCHEMA.names}, schema=SCHEMA))
    content = path.read_bytes()
    assert content.count(struct.pack("<q", 297)) >= 3
    at = content.rindex(struct.pack("<q", 297) + b"\x28\xb5\x2f\xfd")
    path.write_bytes(content[:at] + struct.pack("<q", 2**46) + content[at + 8 :])


def _arrow_of_nothing(path: Path) -> None:
    schema = pa.schema([(name, pa.null()) for name in SCHEMA.names])
    with pa.ipc.new_file(path, schema) as writer:
        for _ in range(3):
            writer.write_batch(pa.record_batch([pa.nulls(2 * 10**9)] * 3, schema=schema))


BOMBS: dict[str, Callable[[Path], None]] = {
    "pairs.jsonl.gz": lambda path: _gzip(path, LINE * 100, 80),
    "lines.jsonl.gz": lambda path: _gzip(path, b"\n" * 2**20, 80),
    "one-line.jsonl.gz": lambda path: _gzip(path, b"a" * 2**20, 80),
    "blanks.json.gz": lambda path: _gzip(path, b"[" + b" " * 2**20, 80),
    "lines.jsonl.zst": lambda path: _zstd(path, b"\n" * 2**20, 80),
    "long.parquet": _parquet_of_long_texts,
    "same.parquet": _parquet_of_one_row_repeated,
    "long.arrow": _arrow_of_long_texts,
    "stream.arrow": lambda path: _arrow_of_long_texts(path, stream=True),
    "lz4.arrow": lambda path: _arrow_of_long_texts(path, codec="lz4"),
    "says.arrow": _arrow_that_only_says_so,
    "nothing.arrow": _arrow_of_nothing,
}


@pytest.mark.parametrize("name", BOMBS)
def test_no_file_explodes(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    BOMBS[name](path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reader = PairReader(str(path), role="train", on_bad_record="skip", on_no_signal="keep")
    with pytest.raises(UserError) as caught:
        for _ in reader:
            pass
    said = str(caught.value)
    assert name in said
    assert any(
        sign in said
        for sign in ("which no text does", "is not JSON", "records in", "larger than", "not valid", "bytes")
    ), said
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_MEMORY


@pytest.mark.parametrize("codec", [None, "zstd", "lz4"])
@pytest.mark.parametrize("stream", [False, True])
def test_honest_tables_are_read(codec: str | None, stream: bool, tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(1000)]
    table = pa.table({"prompt": texts, "chosen": texts, "rejected": texts[::-1]}, schema=SCHEMA)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(tmp_path / "a.arrow", SCHEMA, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table, max_chunksize=300)
    pq.write_table(table, tmp_path / "a.parquet", compression=codec or "none")
    for name in ("a.arrow", "a.parquet"):
        pairs = list(PairReader(str(tmp_path / name), role="train"))
        assert [pair.chosen for pair in pairs] == texts
