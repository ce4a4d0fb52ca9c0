"""KEY=VALUE from the command line, each a layer of its own."""

import os
import re
from collections.abc import Sequence

from simpo_cli.errors import UserError
from simpo_cli.recipe.kinds import kind_at
from simpo_cli.recipe.tree import MappingNode, Node, Origin, ScalarNode
from simpo_cli.recipe.yaml_source import parse_value

_KEY = re.compile(r"[A-Za-z_][\w-]*(?:\.[\w-]+)*")


def override_layers(overrides: Sequence[str]) -> list[MappingNode]:
    """A small tree for each override; the first is override 1."""
    return [_layer(text, Origin(override=number)) for number, text in enumerate(overrides, start=1)]


def _layer(text: str, origin: Origin) -> MappingNode:
    key, value = _split(text, origin)
    path = tuple(key.split("."))
    if path[0] == "defaults":
        raise UserError(
            "defaults cannot be changed from the command line.",
            "Write a recipe that begins with defaults: [...], and name that.",
            where=origin.where,
        )
    node = _value(value, path, origin)
    for part in reversed(path):
        node = MappingNode({part: node}, origin)
    assert isinstance(node, MappingNode)
    return node


def _split(text: str, origin: Origin) -> tuple[str, str]:
    shown = text if text.isprintable() and len(text) <= 60 else repr(text)[:60]
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise UserError("the text is not UTF-8.", "Type it again in a UTF-8 terminal.", where=origin.where)
    key, equals, value = text.partition("=")
    key = re.sub(r"\[(\d+)\]", r".\1", key)  # data.train[0].path is data.train.0.path
    if not equals:
        fix = "Write it as train.max_steps=30, without spaces around the equals sign."
        if text.endswith((".yaml", ".yml")) or os.path.isfile(text):
            fix = "One recipe is named first; to join several, list them under defaults: in a file."
        elif ":" in text and text.isprintable():
            fix = f"Did you mean {text.replace(': ', '=').replace(':', '=', 1)}?"
        raise UserError(f"{shown!r} is not KEY=VALUE.", fix, where=origin.where)
    if _KEY.fullmatch(bare := key.lstrip("+~-")) and bare != key:
        raise UserError(f"{shown!r} does not begin with a key.", f"Did you mean {bare}=...?", where=origin.where)
    if not _KEY.fullmatch(key):
        raise UserError(
            f"{shown!r} does not begin with a key.",
            "A key is words joined by dots, such as train.max_steps=30.",
            where=origin.where,
        )
    return key, value


def _value(text: str, path: tuple[str, ...], origin: Origin) -> Node:
    """The value by the kind of its key: where text is wanted, no and 12:30 are text, and need no quotes."""
    kind, stripped = kind_at(path), text.strip()
    looks_structured = stripped[:1] in ("[", "{", "'", '"')
    if kind is not None and kind.text and not looks_structured:
        if kind.nullable and stripped in ("null", "~"):
            return ScalarNode(None, origin, stripped, plain=True)
        return ScalarNode(text, origin, text)
    if not stripped:
        raise UserError(
            f"{'.'.join(path)} is given no value.",
            f"Write it after the equals sign: {path[-1]}=...",
            where=origin.where,
        )
    if stripped in ("null", "~") and kind is not None and kind.section is not None and not kind.nullable:
        raise UserError(
            f"{'.'.join(path)} is a section and cannot be null.", "Set its keys one by one.", where=origin.where
        )
    return parse_value(text, origin, path)
