"""docs/evaluation.md explains every key that the document has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
TOLD_IN_WORDS = {"schema_version", "model", "models", "data", "prompts", "value", "ci", "n", "from", "to", "confidence"}


def keys(node: Any) -> Iterator[str]:
    """The names of all properties of a schema."""
    if isinstance(node, dict):
        properties = node.get("properties", {})
        yield from properties
        for below in node.values():
            yield from keys(below)
    elif isinstance(node, list):
        for below in node:
            yield from keys(below)


def test_every_key_is_explained() -> None:
    text = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    told = {word for quoted in re.findall(r"`([^`]+)`", text) for word in re.split(r"[.,\s]+", quoted)}
    schema = json.loads((DOCS / "eval.schema.json").read_text(encoding="utf-8"))
    alike = {"bins", "type", "beta", "gamma", "largest", "key", "values", "checkpoint", "problem", "fix", "exit_code"}
    assert set(keys(schema)) - told - TOLD_IN_WORDS - alike == set()
