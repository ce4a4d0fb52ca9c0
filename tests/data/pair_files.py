"""Files of preference pairs, made where a test needs them."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

GOOD = {"prompt": "What is the sky?", "chosen": "It is blue.", "rejected": "It is green."}

Write = Callable[..., str]


def write_pairs(folder: Path, name: str, content: bytes | str | list[Any]) -> str:
    """Write a file and return its path: bytes and text as they are, a list of records by the name's suffix."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        lines = [record if isinstance(record, str) else json.dumps(record) for record in content]
        is_array = ".json" in path.suffixes
        content = "[" + ",\n".join(lines) + "]" if is_array else "".join(line + "\n" for line in lines)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)
