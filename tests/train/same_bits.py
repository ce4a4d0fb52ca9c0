"""What two runs must share to be the same run, and what may differ: times and memory."""

import hashlib
import json
from pathlib import Path
from typing import Any

TIMING = {"seconds", "pairs_per_second", "tokens_per_second", "memory_gb"}


def rows(file: Path) -> list[dict[str, Any]]:
    """The lines of a log; each must be whole."""
    text = file.read_text(encoding="utf-8")
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def timeless(file: Path) -> list[dict[str, Any]]:
    """The lines of a log without what a clock or the memory says; none where there is no log."""
    if not file.is_file():
        return []
    return [{name: value for name, value in row.items() if name not in TIMING} for row in rows(file)]


def final_state(run: Path) -> dict[str, str]:
    """sha256 of weights and moments in the last checkpoint, and of the weights of the model."""
    checkpoint = max((run / "checkpoints").glob("step-*"))
    files = [checkpoint / "weights.safetensors", checkpoint / "optimizer.safetensors"]
    files += sorted((run / "model").glob("*.safetensors"))
    assert len(files) == 3
    return {"/".join(file.parts[-2:]): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
