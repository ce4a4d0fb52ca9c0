"""A recipe as a tree of values that remember where they were written, and how one tree is laid over another."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from simpo_cli.errors import UserError


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

    def __str__(self) -> str:
        if self.override is not None:
            return f"override {self.override}"
        if self.file is None:
            return "default"
        return self.file if self.line is None else f"{self.file}:{self.line}"


DEFAULT = Origin()


@dataclass(slots=True)
class ScalarNode:
    """Text, a number, true, false or null. `text` is what was written, `plain` whether it stood without quotes."""

    value: Any
    origin: Origin
    text: str = ""
    plain: bool = False
    interpolated: bool = False  # the value was computed from a ${...}
    expression: str = ""  # how it was written, where it is of the environment: saved and shown instead of the value


@dataclass(slots=True)
class ListNode:
    """A list of nodes."""

    items: list["Node"]
    origin: Origin


@dataclass(slots=True)
class MappingNode:
    """Keys to nodes. The origin of a child is the line of its key."""

    items: dict[str, "Node"]
    origin: Origin = field(default=DEFAULT)


Node = ScalarNode | ListNode | MappingNode


def plain_value(node: Node) -> Any:
    """The node as ordinary dicts, lists and scalars; what is of the environment as it was written."""
    match node:
        case ScalarNode():
            return node.expression or node.value
        case ListNode():
            return [plain_value(item) for item in node.items]
        case MappingNode():
            return {key: plain_value(item) for key, item in node.items.items()}


def node_of(value: Any, origin: Origin) -> Node:
    """The reverse of `plain_value`, with one origin for everything."""
    match value:
        case dict():
            return MappingNode({str(key): node_of(item, origin) for key, item in value.items()}, origin)
        case list() | tuple():
            return ListNode([node_of(item, origin) for item in value], origin)
        case _:
            return ScalarNode(value, origin, text=str(value))


def scalars(node: Node, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], ScalarNode]]:
    """Every scalar with its path; the items of a list are named 0, 1, 2."""
    match node:
        case ScalarNode():
            yield path, node
        case ListNode():
            for index, item in enumerate(node.items):
                yield from scalars(item, (*path, str(index)))
        case MappingNode():
            for key, item in node.items.items():
                yield from scalars(item, (*path, key))


def without_defaults(tree: MappingNode) -> MappingNode:
    """Only what somebody wrote."""
    kept: dict[str, Node] = {}
    for key, node in tree.items.items():
        if isinstance(node, MappingNode) and node.items:
            below = without_defaults(node)
            if below.items:
                kept[key] = below
        elif not node.origin.is_default:
            kept[key] = node
    return MappingNode(kept, tree.origin)


def lookup(node: Node, path: tuple[str, ...]) -> Node | None:
    """The node at a path, or None."""
    for part in path:
        match node:
            case MappingNode() if part in node.items:
                node = node.items[part]
            case ListNode() if part.isdigit() and int(part) < len(node.items):
                node = node.items[int(part)]
            case _:
                return None
    return node


def merge(base: Node, over: Node, path: tuple[str, ...] = ()) -> Node:
    """Lay one tree over another: mappings join key by key, anything else replaces what was there.

    A mapping whose keys are 0, 1, 2 changes items of a list (the override `data.train.0.max_pairs=100`). A mapping over
    a value that is neither a mapping nor null is refused: one of the two was meant differently.
    """
    if not isinstance(over, MappingNode):
        return over
    if isinstance(base, ListNode) and over.items and all(key.isdigit() for key in over.items):
        return _merge_items(base, over, path)
    if isinstance(base, MappingNode):
        joined = dict(base.items)
        for key, item in over.items.items():
            joined[key] = merge(joined[key], item, (*path, key)) if key in joined else item
        return MappingNode(joined, base.origin if over.origin.override is not None else over.origin)
    if isinstance(base, ScalarNode) and base.value is None:
        return over
    what = "a list" if isinstance(base, ListNode) else "a single value"
    raise UserError(
        f"{'.'.join(path)} is a mapping here and {what} in {base.origin}.",
        "Mappings are joined key by key, so both must be mappings. Change one of the two.",
        where=over.origin.where,
    )


def _merge_items(base: ListNode, over: MappingNode, path: tuple[str, ...]) -> ListNode:
    items = list(base.items)
    for key, item in over.items.items():
        index = int(key)
        if index >= len(items):
            raise UserError(
                f"{'.'.join(path)} has no item {index}: the list in {base.origin} has {len(items)}.",
                "Items are counted from 0.",
                where=item.origin.where,
            )
        items[index] = merge(items[index], item, (*path, key))
    return replace(base, items=items)
