"""A recipe as a tree of values that remember where they were written: one laid over another, and how two differ."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import Recipe

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from: a line of a file, the n-th override of the command line, or the schema's default."""

    file: str | None = None  # as people see it: `run.yaml`, or `shipped:lora.yaml`
    line: int | None = None
    override: int | None = None  # the first override is 1

    @property
    def is_default(self) -> bool:
        return self.file is None and self.override is None

    @property
    def where(self) -> str:
        """The place for an error message; empty for a default, which has none."""
        return "" if self.is_default else str(self)

    def error(self, problem: str, fix: str, *, key: str = "") -> UserError:
        """The error of a person who wrote something here, with its place."""
        return UserError(problem, fix, where=self.where, key=key)

    def __str__(self) -> str:
        if self.override is not None:
            return f"override {self.override}"
        if self.file is None:
            return "default"
        return self.file if self.line is None else f"{self.file}:{self.line}"


DEFAULT = Origin()


@dataclass(slots=True)
class Node:
    """A mapping or list of nodes, or a scalar: text, a number, true, false or null.

    The origin of what stands in a mapping is the line of its key. What follows it is of scalars alone: `text` is what
    was written, `plain` whether it stood without quotes.
    """

    value: Any
    origin: Origin = DEFAULT
    text: str = ""
    plain: bool = False
    interpolated: bool = False  # the value was computed from a ${...}
    expression: str = ""  # how it was written, where it is of the environment: saved and shown instead of the value

    @property
    def is_scalar(self) -> bool:
        return not isinstance(self.value, dict | list)

    @property
    def is_open(self) -> bool:
        """Whether the value is still to be filled in."""
        return self.value == "???" and not self.interpolated

    def below(self) -> list[tuple[str, "Node"]]:
        """The nodes right below by their keys; the items of a list are named 0, 1, 2."""
        if isinstance(self.value, dict):
            return list(self.value.items())
        return [(str(index), item) for index, item in enumerate(self.value)] if isinstance(self.value, list) else []


def plain_value(node: Node) -> Any:
    """The node as ordinary dicts, lists and scalars; what is of the environment as it was written."""
    if isinstance(node.value, dict):
        return {key: plain_value(item) for key, item in node.value.items()}
    return [plain_value(item) for item in node.value] if isinstance(node.value, list) else node.expression or node.value


def node_of(value: Any, origin: Origin = DEFAULT) -> Node:
    """The reverse of `plain_value`, with one origin for everything."""
    match value:
        case dict():
            return Node({str(key): node_of(item, origin) for key, item in value.items()}, origin)
        case list() | tuple():
            return Node([node_of(item, origin) for item in value], origin)
        case _:
            return Node(value, origin, text=str(value))


def changed(node: Node, change: Callable[[Node, Path], Node], path: Path = ()) -> Node:
    """The tree with `change` made to each node, from the deepest on."""
    below = {key: changed(item, change, (*path, key)) for key, item in node.below()}
    if isinstance(node.value, dict):
        return change(replace(node, value=below), path)
    return change(replace(node, value=list(below.values())) if isinstance(node.value, list) else node, path)


def scalars(node: Node, path: Path = ()) -> Iterator[tuple[Path, Node]]:
    """Every scalar with its path."""
    if node.is_scalar:
        yield path, node
    for key, item in node.below():
        yield from scalars(item, (*path, key))


def without_defaults(tree: Node) -> Node:
    """Only what somebody wrote."""
    kept: dict[str, Node] = {}
    for key, node in tree.below():
        if isinstance(node.value, dict) and node.value:
            if (below := without_defaults(node)).value:
                kept[key] = below
        elif not node.origin.is_default:
            kept[key] = node
    return Node(kept, tree.origin)


def lookup(node: Node, path: Path) -> Node | None:
    """The node at a path, or None."""
    for part in path:
        match node.value:
            case dict() as items if part in items:
                node = items[part]
            case list() as items if part.isdigit() and int(part) < len(items):
                node = items[int(part)]
            case _:
                return None
    return node


def merge(base: Node, over: Node, path: Path = ()) -> Node:
    """Lay one tree over another: mappings join key by key, anything else replaces what was there.

    A mapping whose keys are 0, 1, 2 changes items of a list (the override `data.train.0.max_pairs=100`). A mapping over
    a value that is neither a mapping nor null is refused: one of the two was meant differently.
    """
    if not isinstance(over.value, dict) or base.value is None:
        return over
    joined = dict(base.below())
    if isinstance(base.value, list) and over.value and all(key.isdigit() for key in over.value):
        for key, item in over.value.items():
            if (place := str(int(key))) not in joined:
                raise item.origin.error(
                    f"{'.'.join(path)} has no item {int(key)}: the list in {base.origin} has {len(joined)}.",
                    "Items are counted from 0.",
                )
            joined[place] = merge(joined[place], item, (*path, key))
        return replace(base, value=list(joined.values()))
    if isinstance(base.value, dict):
        for key, item in over.value.items():
            joined[key] = merge(joined[key], item, (*path, key)) if key in joined else item
        return Node(joined, base.origin if over.origin.override is not None else over.origin)
    what = "a list" if isinstance(base.value, list) else "a single value"
    raise over.origin.error(
        f"{'.'.join(path)} is a mapping here and {what} in {base.origin}.",
        "Mappings are joined key by key, so both must be mappings. Change one of the two.",
    )


_NAMES = ("name", "output_dir")  # say where a run lies, not what it does


def differences(first: Recipe, second: Recipe, *, items: bool = False) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, dotted, in the order of the schema, each with both values.

    gamma and its ratio are compared as both of what they come to; names and folders of the runs are left out.
    `items` is that of `flat`.
    """
    ours, theirs = flat(_settled(first), items=items), flat(_settled(second), items=items)
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return {key: (ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)}


def _settled(recipe: Recipe) -> dict[str, Any]:
    sections = {key: value for key, value in asdict(recipe).items() if key not in _NAMES}
    sections["loss"] |= {"gamma": recipe.loss.margin, "gamma_beta_ratio": recipe.loss.margin_beta_ratio}
    return sections


def flat(tree: Mapping[str, Any], above: str = "", *, items: bool = False) -> dict[str, Any]:
    """The values of a tree by their dotted keys; lists and empty mappings are values.

    With `items` the mappings of a list go key by key as well, under its numbers: `data.train.0.path`.
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if items and isinstance(value, list) and value and isinstance(value[0], Mapping):
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{above}{key}.", items=items)
        else:
            found[f"{above}{key}"] = value
    return found


def unflat(values: Mapping[str, Any]) -> Node:
    """The reverse of `flat`, as a tree of nodes."""
    tree = Node({})
    for key, value in values.items():
        node = node_of(value)
        for part in reversed(key.split(".")):
            node = Node({part: node})
        tree = merge(tree, node)
    return tree


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """Every value of a recipe by its dotted key, as JSON has it; those of a source as data.train.0.path."""
    plain: dict[str, Any] = json.loads(json.dumps(flat(asdict(recipe), items=True)))
    return plain
