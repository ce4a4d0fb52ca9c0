"""Files of preference pairs, made where a test needs them."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
