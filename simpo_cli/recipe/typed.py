"""From the merged tree to the frozen dataclasses: every value checked against its type, every problem has its place."""

import dataclasses
import difflib
import re
from typing import Any

from simpo_cli.errors import UserError
from simpo_cli.recipe.keys import Problem
from simpo_cli.recipe.kinds import Kind, fields_of, nearest_section
from simpo_cli.recipe.schema import FieldError, Recipe
from simpo_cli.recipe.tree import DEFAULT, ListNode, MappingNode, Node, ScalarNode, lookup, node_of
from simpo_cli.recipe.yaml_source import scalar_of

_LARGEST_EXACT = 2**53  # whole numbers above this change when they become a float


class _Invalid:
    """Stands for a value whose problem has been noted."""


_INVALID = _Invalid()


def fill_defaults(tree: MappingNode) -> MappingNode:
    """The tree with every default written out, so that ${...} can refer to it and it is shown."""
    return _fill(tree, Recipe)


def _fill(tree: MappingNode, section: type[Any]) -> MappingNode:
    filled: dict[str, Node] = {}
    for field in dataclasses.fields(section):
        kind = fields_of(section)[field.name]
        node = tree.items.get(field.name)
        if node is None:
            if field.default is not dataclasses.MISSING:
                node = node_of(field.default, DEFAULT)
            elif kind.section is not None:
                node = MappingNode({})
            elif field.default_factory is not dataclasses.MISSING:
                node = node_of(field.default_factory(), DEFAULT)
            else:
                continue
        below = kind.section
        if below is not None and isinstance(node, MappingNode):
            node = _fill(node, below)
        elif kind.items is not None and kind.items.section is not None and isinstance(node, ListNode):
            items = [_fill(item, kind.items.section) if isinstance(item, MappingNode) else item for item in node.items]
            node = ListNode(items, node.origin)
        filled[field.name] = node
    return MappingNode(filled, tree.origin)


def _required(section: type[Any]) -> list[str]:
    nothing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(section) if f.default is nothing and f.default_factory is nothing]


def to_recipe(tree: MappingNode, display: str) -> tuple[Recipe | None, list[Problem]]:
    """The typed recipe, or None and every problem that keeps the tree from being one."""
    reader = _Reader(tree, display)
    recipe = reader.section(tree, Recipe, ())
    return (recipe if isinstance(recipe, Recipe) else None), reader.problems


class _Reader:
    def __init__(self, tree: MappingNode, display: str) -> None:
        self.tree = tree
        self.display = display
        self.problems: list[Problem] = []

    def section(self, tree: MappingNode, section: type[Any], path: tuple[str, ...]) -> Any:
        values: dict[str, Any] = {}
        for key, kind in fields_of(section).items():
            node = tree.items.get(key)
            if node is None and key not in _required(section):
                continue  # the schema's default; only one of gamma and gamma_beta_ratio is in the tree
            if node is None or (isinstance(node, ScalarNode) and node.value == "???" and not node.interpolated):
                values[key] = self.missing(tree, (*path, key))
            else:
                values[key] = self.value(node, kind, (*path, key))
        if any(value is _INVALID for value in values.values()):
            return _INVALID
        try:
            return section(**values)
        except FieldError as error:
            keys = [tuple(key.split(".")) for key in (error.key, *error.related)]
            where = self.place(tree, keys)
            name = ".".join((*path, *keys[0]))
            problem = _unexpanded(error.problem, tree, keys)
            self.problems.append(Problem(UserError(f"{name} {problem}.", error.fix, where=where)))
            return _INVALID

    def place(self, tree: MappingNode, keys: list[tuple[str, ...]]) -> str:
        """Where to look first: the last override among these keys, else this file, else the first that was written."""
        nodes = [node for key in keys if (node := lookup(tree, key)) is not None and not node.origin.is_default]
        if not nodes:
            return tree.origin.where or self.display
        return max(
            (node.origin for node in nodes), key=lambda origin: (origin.override or 0, origin.file == self.display)
        ).where

    def missing(self, near: Node, path: tuple[str, ...]) -> _Invalid:
        key = ".".join(path)
        example = {
            "name": "name: my-run",
            "model.path": "model: {path: builtin:guide}",
            "data.train": "data: {train: prefs.jsonl}",
        }.get(key, f"{path[-1]}: prefs.jsonl")
        where = near.origin.where if len(path) > 1 else ""
        error = UserError(f"{key} is missing.", f"Give it, for example {example}", where=where or self.display)
        self.problems.append(Problem(error, missing_key=key))
        return _INVALID

    def wrong(self, node: Node, kind: Kind, path: tuple[str, ...], fix: str = "") -> _Invalid:
        shown, what = _shown(node)
        wanted = kind.describe()
        fix = fix or f"See: simpo recipe schema {nearest_section(path)}".rstrip()
        error = UserError(
            f"{'.'.join(path)} is {shown}{what}; wanted: {wanted}.", fix, where=node.origin.where or self.display
        )
        self.problems.append(Problem(error))
        return _INVALID

    def value(self, node: Node, kind: Kind, path: tuple[str, ...]) -> Any:
        match node:
            case ScalarNode():
                return self.scalar(node, kind, path)
            case ListNode():
                if kind.anything:
                    items = [self.value(item, kind, (*path, str(i))) for i, item in enumerate(node.items)]
                elif kind.items is not None:
                    items = [self.value(item, kind.items, (*path, str(i))) for i, item in enumerate(node.items)]
                else:
                    return self.wrong(node, kind, path)
                return _INVALID if any(item is _INVALID for item in items) else items
            case MappingNode():
                if kind.section is not None:
                    return self.section(node, kind.section, path)
                values = kind if kind.anything else kind.values
                if values is None:
                    return self.wrong(node, kind, path, _mapping_fix(kind, path))
                read = {key: self.value(item, values, (*path, key)) for key, item in node.items.items()}
                return _INVALID if any(value is _INVALID for value in read.values()) else read

    def scalar(self, node: ScalarNode, kind: Kind, path: tuple[str, ...]) -> Any:
        value = node.value
        if node.interpolated:
            value = _fitted(value, kind)
        if kind.anything:
            return value
        if value is None:
            return None if kind.nullable else self.wrong(node, kind, path, _null_fix(path))
        if isinstance(value, bool):
            return value if kind.boolean else self.wrong(node, kind, path, _quote_fix(node, kind, path))
        if isinstance(value, int) and kind.integer:
            return value
        if isinstance(value, int) and kind.number and abs(value) <= _LARGEST_EXACT:
            return float(value)
        if isinstance(value, int) and kind.number:
            return self.wrong(node, kind, path, "Write fewer digits; 1e6 is a million.")
        if isinstance(value, int):
            return self.wrong(node, kind, path, _quote_fix(node, kind, path))
        if isinstance(value, float):
            if kind.number:
                return value
            fix = f"Write {int(value)}." if kind.integer and value.is_integer() else _quote_fix(node, kind, path)
            return self.wrong(node, kind, path, fix)
        if kind.text or value in kind.choices:
            return value
        return self.wrong(node, kind, path, _text_fix(node, kind, path))


def _shown(node: Node) -> tuple[str, str]:
    """How the value was written, and what it was read as."""
    match node:
        case ListNode():
            return "a list", ""
        case MappingNode():
            return "a mapping", ""
        case ScalarNode(expression=expression) if expression:
            return expression, " from the environment"
        case ScalarNode(value=value):
            text = node.text if node.plain and node.text else str(value)
            text = text if len(text) <= 40 else text[:40] + "..."
            if isinstance(value, str):
                shown = repr(value) if len(value) <= 40 else repr(value[:40]) + "..."
                return shown, ""
            if value is None:
                return "null" if text in ("", "None") else text, "" if text in (
                    "",
                    "None",
                    "null",
                ) else ", which is null"
            if isinstance(value, bool):
                plain = str(value).lower()
                return (text, f", which YAML reads as {plain}") if text.lower() != plain else (plain, "")
            return text, ", a number" if text == str(value) or node.plain else ""


def _fitted(value: Any, kind: Kind) -> Any:
    """A computed value in the type of its key: environment variables are text, names may be built of numbers."""
    if isinstance(value, str) and not kind.text and value not in kind.choices:
        return scalar_of(value)
    if kind.text and not kind.nullable and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


def _null_fix(path: tuple[str, ...]) -> str:
    return f"Give a value, or delete the line to use the default of {'.'.join(path)}."


def _quote_fix(node: ScalarNode, kind: Kind, path: tuple[str, ...]) -> str:
    return f"For text put it in quotes: {path[-1]}: '{node.text}'" if kind.text and not path[-1].isdigit() else ""


def _unexpanded(problem: str, tree: MappingNode, keys: list[tuple[str, ...]]) -> str:
    """What is wrong with a value, told without the value where it is of the environment."""
    for key in keys:
        node = lookup(tree, key)
        if isinstance(node, ScalarNode) and node.expression:
            spelled = {repr(node.value), str(node.value), str(scalar_of(str(node.value)))}
            values = "|".join(map(re.escape, sorted(spelled, key=len, reverse=True)))
            expression = node.expression.replace("\\", r"\\")
            problem = re.sub(rf"(?<![\w.])(?:{values})(?:\.0)?(?![\w.])", expression, problem)
    return problem


def _text_fix(node: ScalarNode, kind: Kind, path: tuple[str, ...]) -> str:
    text = node.expression or str(node.value)
    if kind.choices and (close := difflib.get_close_matches(text.lower(), kind.choices, n=1)):
        return f"Did you mean {close[0]}?"
    if not node.plain and (kind.integer or kind.number or kind.boolean) and not isinstance(scalar_of(text), str):
        return f"Take the quotes away: {path[-1]}: {text}"
    if kind.section is not None and path[-1].isdigit():
        return f"Write the source as {{path: {text}}}."
    if kind.items is not None and (kind.items.text or text in kind.items.choices):
        return f"Write a list: {path[-1]}: [{text}]"
    return ""


def _mapping_fix(kind: Kind, path: tuple[str, ...]) -> str:
    if kind.items is not None and kind.items.section is not None:
        return f"Write a list with one item: put a dash before the first key below {path[-1]}."
    return ""


def settled(tree: MappingNode, recipe: Recipe) -> MappingNode:
    """The tree with the values of the typed recipe: 1 is 1.0 where a fraction is possible, a computed '8' is 8."""
    node = _settle(tree, recipe)
    assert isinstance(node, MappingNode)
    return node


def _settle(node: Node, value: Any) -> Node:
    match node:
        case MappingNode():
            return MappingNode(
                {
                    key: _settle(item, value[key] if isinstance(value, dict) else getattr(value, key))
                    for key, item in node.items.items()
                },
                node.origin,
            )
        case ListNode():
            return ListNode([_settle(item, value[index]) for index, item in enumerate(node.items)], node.origin)
        case ScalarNode():
            return dataclasses.replace(node, value=value)
