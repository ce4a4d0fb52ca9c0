"""From the merged tree to the frozen dataclasses by pydantic; each of its errors gets its place and a cure."""

import dataclasses
import difflib
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from simpo_cli.errors import UserError
from simpo_cli.recipe.fields import (
    Schema,
    accepts,
    bounds,
    choices,
    describe,
    fix_of,
    forms,
    nearest_section,
    root,
    schema_at,
    section_of,
)
from simpo_cli.recipe.habits import unknown_key, unknown_part
from simpo_cli.recipe.schema import Recipe
from simpo_cli.recipe.tree import DEFAULT, ListNode, MappingNode, Node, ScalarNode, lookup, node_of
from simpo_cli.recipe.values import FieldError
from simpo_cli.recipe.yaml_source import scalar_of

Path = tuple[str, ...]

_RECIPE = TypeAdapter(Recipe)
_OUT_OF_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
_LARGEST_EXACT = 2**53  # whole numbers above this change when they become a float
_EXAMPLES = {
    "name": "name: my-run",
    "model.path": "model: {path: builtin:guide}",
    "data.train": "data: {train: prefs.jsonl}",
}


class MissingKeyError(UserError):
    """A required key is not given."""


def without_unknown(tree: MappingNode) -> tuple[MappingNode, list[UserError]]:
    """The tree without the keys that a recipe does not have, and an error for each of them."""
    problems: dict[Path, UserError] = {}
    for detail in _validated(tree)[1]:
        path = _path(tree, detail)
        node = lookup(tree, path)
        if node is not None and detail["loc"][-1:] == ("[key]",):
            above = schema_at(path[:-1]) or {}
            names = next(form["propertyNames"] for form in forms(above) if "propertyNames" in form)
            problems[path] = unknown_part(path, choices(names), node)
        elif node is not None and detail["type"] == "unexpected_keyword_argument":
            problems[path] = unknown_key(path, node)
    kept = _without(tree, problems, ())
    assert isinstance(kept, MappingNode)
    return kept, list(problems.values())


def _without(node: Node, paths: Collection[Path], path: Path) -> Node:
    match node:
        case ListNode():
            return ListNode([_without(item, paths, (*path, str(i))) for i, item in enumerate(node.items)], node.origin)
        case MappingNode():
            kept = {key: item for key, item in node.items.items() if (*path, key) not in paths}
            return MappingNode({key: _without(item, paths, (*path, key)) for key, item in kept.items()}, node.origin)
    return node


def fill_defaults(tree: MappingNode) -> MappingNode:
    """The tree with every default written out, so that ${...} can refer to it and it is shown."""
    filled = _filled(tree, root())
    assert isinstance(filled, MappingNode)
    return filled


def _filled(node: Node, section: Schema) -> Node:
    if isinstance(node, ListNode):
        return ListNode([_filled(item, section) for item in node.items], node.origin)
    if not isinstance(node, MappingNode):
        return node
    items: dict[str, Node] = {}
    for key, field in section["properties"].items():
        item, below = node.items.get(key), section_of(field)
        if item is None and "default" in field:
            item = node_of(field["default"], DEFAULT)
        elif item is None and (key not in section.get("required", ()) or "properties" in field):
            item = node_of([] if accepts(field, "array") else {}, DEFAULT)
        if item is not None:
            items[key] = item if below is None else _filled(item, below)
    return MappingNode(items, node.origin)


def to_recipe(tree: MappingNode, display: str) -> tuple[Recipe | None, list[UserError]]:
    """The typed recipe, or None and every problem that keeps the tree from being one."""
    recipe, details = _validated(tree)
    found: dict[Path, ErrorDetails] = {}
    for detail in details:
        found.setdefault(_path(tree, detail), detail)  # of a value with several forms the first complains
    deepest = [path for path in found if not any(other[: len(path)] == path != other for other in found)]
    return recipe, [_problem(path, found[path], tree, display) for path in deepest]


def refused_value(*, loss: Mapping[str, Any], data: Mapping[str, Any], train: Mapping[str, Any]) -> UserError | None:
    """The error of the first value that a recipe would refuse in these sections; None if it takes them all."""
    values = {"name": "any", "model": {"path": "any"}, "data": {"train": "any", **data}, "loss": loss, "train": train}
    tree = node_of(values, DEFAULT)
    assert isinstance(tree, MappingNode)
    return next(iter(to_recipe(tree, "")[1]), None)


def _validated(tree: MappingNode) -> tuple[Recipe | None, list[ErrorDetails]]:
    try:  # as JSON: what is strict takes no mapping of Python for a section
        return _RECIPE.validate_json(json.dumps(_plain(tree, ()), default=float)), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _plain(node: Node, path: Path) -> Any:
    """The values of a tree; what is still to be filled in (???) is left out."""
    match node:
        case ScalarNode():
            value, schema = node.value, schema_at(path) or {}
            if node.interpolated:
                value = _fitted(value, schema)
            is_inexact = isinstance(value, int) and abs(value) > _LARGEST_EXACT and accepts(schema, "number")
            return str(value) if is_inexact else value  # no number: it would become another one
        case ListNode():
            return [_plain(item, (*path, str(index))) for index, item in enumerate(node.items)]
        case MappingNode():
            return {key: _plain(item, (*path, key)) for key, item in node.items.items() if not _is_open(item)}


def _is_open(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.value == "???" and not node.interpolated


def _fitted(value: Any, schema: Schema) -> Any:
    """A computed value in the type of its key: environment variables are text, names may be built of numbers."""
    if not schema:
        return value
    if isinstance(value, str) and not accepts(schema, "string") and value not in choices(schema):
        return scalar_of(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and accepts(schema, "string") and not accepts(schema, "null"):
        return str(value)
    return value


def _path(tree: MappingNode, detail: ErrorDetails) -> Path:
    """Where in the tree an error lies: pydantic names the forms of a value, such as `list[str]`, as well."""
    path: Path = ()
    node: Node = tree
    for part in map(str, detail["loc"]):
        below = lookup(node, (part,))
        if below is not None:
            path, node = (*path, part), below
        elif detail["type"] == "missing":
            path = (*path, part)
    return path


def _problem(path: Path, detail: ErrorDetails, tree: MappingNode, display: str) -> UserError:
    key, node, cause = ".".join(path), lookup(tree, path), detail.get("ctx", {}).get("error")
    if node is None or detail["type"] == "missing":
        near = lookup(tree, path[:-1])
        where = near.origin.where if near is not None and len(path) > 1 else ""
        example = _EXAMPLES.get(key, f"{path[-1]}: prefs.jsonl")
        return MissingKeyError(f"{key} is missing.", f"Give it, for example {example}", where=where or display, key=key)
    if isinstance(cause, FieldError):
        keys = [tuple(name.split(".")) for name in (cause.key, *cause.related)]
        nodes = [below for name in keys if (below := lookup(node, name)) is not None]
        key = ".".join((*path, *keys[0]))
        problem, fix, where = _unexpanded(cause.problem, nodes), cause.fix, _place(nodes, node, display)
        return UserError(f"{key} {problem}.", fix, where=where, key=key)
    schema = schema_at(path) or {}
    fix = fix_of(schema)
    if cause is not None:
        problem = _unexpanded(str(cause), [node])
    elif detail["type"] == "too_short":
        problem = "is empty"
    elif detail["type"] in _OUT_OF_BOUNDS and isinstance(node, ScalarNode):
        value = detail["input"]
        shown = node.expression or (float(value) if not accepts(schema, "integer") else value)
        problem = f"is {shown}, {bounds(schema)}"
    else:
        problem = f"is {_shown(node)}; wanted: {describe(schema)}"
        fix = _fix(node, schema, path) or f"See: simpo recipe schema {nearest_section(path)}".rstrip()
    return UserError(f"{key} {problem}.", fix, where=node.origin.where or display, key=key)


def _place(nodes: list[Node], section: Node, display: str) -> str:
    """Where to look first: the last override among these, else this file, else the first that was written."""
    origins = [node.origin for node in nodes if not node.origin.is_default]
    if not origins:
        return section.origin.where or display
    return max(origins, key=lambda origin: (origin.override or 0, origin.file == display)).where


def _unexpanded(problem: str, nodes: list[Node]) -> str:
    """What is wrong with a value, without the value where it is of the environment."""
    for node in nodes:
        if isinstance(node, ScalarNode) and node.expression:
            spelled = {repr(node.value), str(node.value), str(scalar_of(str(node.value)))}
            values = "|".join(map(re.escape, sorted(spelled, key=len, reverse=True)))
            expression = node.expression.replace("\\", r"\\")
            problem = re.sub(rf"(?<![\w.])(?:{values})(?:\.0)?(?![\w.])", expression, problem)
    return problem


def _shown(node: Node) -> str:
    """How the value was written, and what it was read as."""
    match node:
        case ListNode():
            return "a list"
        case MappingNode():
            return "a mapping"
        case ScalarNode(expression=expression) if expression:
            return f"{expression} from the environment"
        case ScalarNode(value=str() as value):
            return repr(value) if len(value) <= 40 else repr(value[:40]) + "..."
    text = node.text if node.plain and node.text else str(node.value)
    text = text if len(text) <= 40 else text[:40] + "..."
    if node.value is None:
        return f"{text}, which is null" if text not in ("", "None", "null") else "null"
    if isinstance(node.value, bool):
        plain = str(node.value).lower()
        return plain if text.lower() == plain else f"{text}, which YAML reads as {plain}"
    return f"{text}, a number"


def _fix(node: Node, schema: Schema, path: Path) -> str:
    last = path[-1]
    match node:
        case MappingNode() if section_of(schema) and accepts(schema, "array"):
            return f"Write a list with one item: put a dash before the first key below {last}."
        case ScalarNode(value=None):
            return f"Give a value, or delete the line to use the default of {'.'.join(path)}."
        case ScalarNode(value=str()):
            return _fix_of_text(node, schema, last)
        case ScalarNode(value=int() as value) if abs(value) > _LARGEST_EXACT and accepts(schema, "number"):
            return "Write fewer digits; 1e6 is a million."
        case ScalarNode(value=float() as value) if value.is_integer() and accepts(schema, "integer"):
            return f"Write {int(value)}."
        case ScalarNode() if accepts(schema, "string") and not last.isdigit():
            return f"For text put it in quotes: {last}: '{node.text}'"
    return ""


def _fix_of_text(node: ScalarNode, schema: Schema, last: str) -> str:
    text = node.expression or str(node.value)
    words = choices(schema)
    if words and (close := difflib.get_close_matches(text.lower(), words, n=1)):
        return f"Did you mean {close[0]}?"
    is_number = accepts(schema, "integer", "number", "boolean") and not isinstance(scalar_of(text), str)
    if is_number and not node.plain:
        return f"Take the quotes away: {last}: {text}"
    if section_of(schema) and last.isdigit():
        return f"Write the source as {{path: {text}}}."
    items: Schema = next((form["items"] for form in forms(schema) if "items" in form), {})
    if accepts(items, "string") or text in choices(items):
        return f"Write a list: {last}: [{text}]"
    return ""


def with_values(tree: MappingNode, recipe: Recipe) -> MappingNode:
    """The tree with the values of the typed recipe: 1 is 1.0 where a fraction is possible, a computed '8' is 8."""
    node = _with_value(tree, recipe)
    assert isinstance(node, MappingNode)
    return node


def _with_value(node: Node, value: Any) -> Node:
    match node:
        case MappingNode():
            of = value if isinstance(value, dict) else vars(value)
            return MappingNode({key: _with_value(item, of[key]) for key, item in node.items.items()}, node.origin)
        case ListNode():
            return ListNode([_with_value(item, value[index]) for index, item in enumerate(node.items)], node.origin)
        case ScalarNode():  # one source may be named by its path alone
            return node if isinstance(value, list) else dataclasses.replace(node, value=value)
