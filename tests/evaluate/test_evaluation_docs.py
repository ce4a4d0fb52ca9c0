"""docs/evaluation.md and docs/generation.md explain every key that the documents have."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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


def keys_of(name: str) -> set[str]:
    return set(keys(json.loads((DOCS / name).read_text(encoding="utf-8"))))


def told_in(page: str) -> set[str]:
    """The words that stand between backticks."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return {word for quoted in re.findall(r"`([^`]+)`", text) for word in re.split(r"[.,\s]+", quoted)}


def test_every_key_of_scored_pairs_is_explained() -> None:
    alike = {"bins", "type", "beta", "gamma", "largest", "key", "values", "checkpoint", "problem", "fix", "exit_code"}
    assert keys_of("eval.schema.json") - told_in("evaluation.md") - TOLD_IN_WORDS - alike == set()


@pytest.mark.parametrize("name", ["answers.schema.json", "harness.schema.json"])
def test_every_key_of_answers_and_results_is_explained(name: str) -> None:
    assert keys_of(name) - told_in("generation.md") - {"value", "ci", "n"} == set()
