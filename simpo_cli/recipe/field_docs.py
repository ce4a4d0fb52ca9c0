"""The sentences under the fields of the schema, read from its source: they are written once, beside the field."""

import ast
import functools
import inspect
from typing import Any

from simpo_cli.recipe import schema


@functools.cache
def _all_sentences() -> dict[str, dict[str, str]]:
    sentences: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(schema)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        found = sentences.setdefault(node.name, {})
        for field, below in zip(node.body, node.body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if (
                isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                found[field.target.id] = " ".join(below.value.value.split())
    return sentences


def sentence(section: type[Any], key: str) -> str:
    """What a field does."""
    return _all_sentences().get(section.__name__, {}).get(key, "")
