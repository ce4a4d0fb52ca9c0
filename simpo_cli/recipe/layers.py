"""The layers of a recipe, lowest first: the files it builds on, the file itself, each KEY=VALUE; and their union."""

import os
import re
from collections.abc import Sequence

from simpo_cli.errors import UserError
from simpo_cli.names import RecipeFile, find_default, suggest_default
from simpo_cli.recipe.fields import accepts, schema_at, section_of
from simpo_cli.recipe.tree import ListNode, MappingNode, Node, Origin, ScalarNode, merge
from simpo_cli.recipe.yaml_source import parse_file, parse_value, read_text

MAX_DEFAULTS_DEPTH = 8
MAX_LAYERS = 64


def file_layers(file: RecipeFile) -> tuple[list[MappingNode], list[str]]:
    """The trees of a recipe file and of everything in its `defaults:`, lowest first, and notes on shadowed names."""
    layers: list[MappingNode] = []
    notes: list[str] = [file.note] if file.note else []
    _collect(file, (), None, layers, notes)
    return layers, notes


def _collect(
    file: RecipeFile, above: tuple[RecipeFile, ...], named: Origin | None, layers: list[MappingNode], notes: list[str]
) -> None:
    where = named.where if named else ""
    resolved = file.path.resolve()
    if any(resolved == other.path.resolve() for other in above):
        chain = " -> ".join(other.display for other in (*above, file))
        raise UserError(f"defaults go round in a circle: {chain}.", "Remove one of these names.", where=where)
    if len(above) >= MAX_DEFAULTS_DEPTH or len(layers) >= MAX_LAYERS:
        raise UserError(
            f"defaults are nested more than {MAX_DEFAULTS_DEPTH} deep or name more than {MAX_LAYERS} files.",
            "Put what the files share into one of them.",
            where=where,
        )
    tree = parse_file(read_text(file.path, file.display), file.display)
    for name, origin in _defaults_of(tree):
        found = find_default(name, file)
        if found is None:
            raise UserError(
                f"defaults names {name!r}, which does not exist.", suggest_default(name), where=origin.where
            )
        if found.path.is_dir():
            raise UserError(
                f"defaults names {name!r}, which is a folder.", "Name one recipe in it.", where=origin.where
            )
        if found.note and found.note not in notes:
            notes.append(found.note)
        _collect(found, (*above, file), origin, layers, notes)
    layers.append(tree)


def _defaults_of(tree: MappingNode) -> list[tuple[str, Origin]]:
    """Take `defaults` out of a layer: names with the lines they stand in."""
    node = tree.items.pop("defaults", None)
    if node is None:
        return []
    items = node.items if isinstance(node, ListNode) else [node]
    names = []
    for item in items:
        if not isinstance(item, ScalarNode) or not isinstance(item.value, str) or not item.value.strip():
            raise UserError(
                "defaults must be the name of a recipe, or a list of names.",
                "For example: defaults: [paper/llama3-8b-instruct, lora]",
                where=item.origin.where,
            )
        if "${" in item.value:
            raise UserError(
                "defaults cannot use ${...}: they are read before values are known.",
                "Write the name.",
                where=item.origin.where,
            )
        names.append((item.value.strip(), item.origin))
    return names


def stack(layers: list[MappingNode]) -> MappingNode:
    """All layers laid over each other, the last one on top."""
    merged = MappingNode({})
    for layer in layers:
        united = merge(merged, _one_margin(_without_empty(layer)))
        assert isinstance(united, MappingNode)
        merged = united
    return merged


def _without_empty(layer: MappingNode) -> MappingNode:
    """A section with every line below it commented out is null, and means nothing."""
    kept = {
        key: node
        for key, node in layer.items.items()
        if not (isinstance(node, ScalarNode) and node.value is None and section_of(schema_at((key,))))
    }
    return MappingNode(kept, layer.origin)


def _one_margin(layer: MappingNode) -> MappingNode:
    """gamma and gamma_beta_ratio say one thing: a layer that names one clears the other in the layers below it."""
    loss = layer.items.get("loss")
    if not isinstance(loss, MappingNode):
        return layer
    named = [key for key in ("gamma", "gamma_beta_ratio") if not _is_null(loss, key)]
    if len(named) == 2:
        later = max((loss.items[key].origin for key in named), key=lambda origin: origin.line or 0)
        raise UserError(
            "loss.gamma and loss.gamma_beta_ratio say one thing in two ways, and both are given.",
            "Keep one: gamma is gamma_beta_ratio times beta.",
            where=later.where,
        )
    if len(named) == 1:
        other = "gamma" if named[0] == "gamma_beta_ratio" else "gamma_beta_ratio"
        cleared = {**loss.items, other: ScalarNode(None, loss.items[named[0]].origin)}
        return MappingNode({**layer.items, "loss": MappingNode(cleared, loss.origin)}, layer.origin)
    return layer


def _is_null(loss: MappingNode, key: str) -> bool:
    node = loss.items.get(key)
    return node is None or (isinstance(node, ScalarNode) and node.value is None)


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
    schema, stripped = schema_at(path), text.strip()
    looks_structured = stripped[:1] in ("[", "{", "'", '"')
    if accepts(schema, "string") and not looks_structured:
        if accepts(schema, "null") and stripped in ("null", "~"):
            return ScalarNode(None, origin, stripped, plain=True)
        return ScalarNode(text, origin, text)
    if not stripped:
        raise UserError(
            f"{'.'.join(path)} is given no value.",
            f"Write it after the equals sign: {path[-1]}=...",
            where=origin.where,
        )
    if stripped in ("null", "~") and section_of(schema) and not accepts(schema, "null", "array"):
        raise UserError(
            f"{'.'.join(path)} is a section and cannot be null.", "Set its keys one by one.", where=origin.where
        )
    return parse_value(text, origin, path)
