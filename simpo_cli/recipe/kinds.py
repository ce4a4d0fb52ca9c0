"""What a field of the recipe accepts, read from its type: the one place that looks at annotations."""

import dataclasses
import functools
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, Union

from simpo_cli.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The values that one field accepts. A field may accept several kinds, such as text or a list of sources."""

    nullable: bool = False
    text: bool = False
    boolean: bool = False
    integer: bool = False
    number: bool = False  # with a fraction; a whole number becomes one
    choices: tuple[str, ...] = ()
    section: type[Any] | None = None
    items: "Kind | None" = None  # a list of these
    values: "Kind | None" = None  # a mapping from text to these
    keys: tuple[str, ...] = ()  # the only keys that such a mapping may have
    anything: bool = False

    def describe(self) -> str:
        """What is wanted, as the end of a sentence: `a whole number or auto`."""
        if self.anything:
            return "any value"
        wanted = []
        if self.boolean:
            wanted.append("true or false")
        if self.number:
            wanted.append("a number")
        elif self.integer:
            wanted.append("a whole number")
        if self.choices:
            wanted.append(self.choices[0] if len(self.choices) == 1 else "one of " + ", ".join(self.choices))
        if self.text:
            wanted.append("text")
        if self.items is not None:
            words = f"words out of {', '.join(self.items.choices)}" if self.items.choices else "words"
            wanted.append("a list of sources" if self.items.section is not None else f"a list of {words}")
        if self.section is not None or self.values is not None:
            wanted.append("a mapping")
        if self.nullable:
            wanted.append("null")
        return " or ".join(wanted)


@functools.cache
def kind_of(annotation: Any) -> Kind:
    """The kind that a type annotation of the schema stands for."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        accepted: dict[str, Any] = {}
        for arg in args:
            one = kind_of(arg)
            accepted.update({f.name: v for f in dataclasses.fields(one) if (v := getattr(one, f.name)) != f.default})
        return Kind(**accepted)
    if origin is Literal:
        return Kind(choices=args)
    if origin is list:
        return Kind(items=kind_of(args[0]))
    if origin is dict:
        return Kind(values=kind_of(args[1]), keys=kind_of(args[0]).choices)
    if dataclasses.is_dataclass(annotation):
        return Kind(section=typing.cast(type[Any], annotation))
    simple = {
        type(None): Kind(nullable=True),
        str: Kind(text=True),
        bool: Kind(boolean=True),
        int: Kind(integer=True),
        float: Kind(number=True),
        Any: Kind(anything=True, nullable=True),
    }
    return simple[annotation]


def fields_of(section: type[Any]) -> dict[str, Kind]:
    """The keys of a section with what each accepts."""
    hints = typing.get_type_hints(section)
    return {f.name: kind_of(hints[f.name]) for f in dataclasses.fields(section)}


def nearest_section(path: tuple[str, ...]) -> str:
    """The deepest section that a path goes through, as `simpo recipe schema` knows it; empty for the root."""
    names = [part for part in path if not part.isdigit()]
    while names and ((kind := all_keys().get(".".join(names))) is None or sub_section(kind) is None):
        names.pop()
    return ".".join(names)


def sub_section(kind: Kind) -> type[Any] | None:
    """The section that a field holds, or that its list items are."""
    return kind.section or (kind.items.section if kind.items is not None else None)


@functools.cache
def all_keys() -> dict[str, Kind]:
    """Every dotted key of a recipe with its kind; the keys of list items are left out."""
    found: dict[str, Kind] = {}

    def walk(section: type[Any], prefix: str) -> None:
        for key, kind in fields_of(section).items():
            found[prefix + key] = kind
            if kind.section is not None:
                walk(kind.section, f"{prefix}{key}.")

    walk(Recipe, "")
    return found


def kind_at(path: tuple[str, ...]) -> Kind | None:
    """The kind of a dotted path, also inside lists and free mappings; None when there is no such key."""
    kind: Kind | None = Kind(section=Recipe)
    for part in path:
        if kind is None:
            return None
        if kind.anything:
            return kind
        if kind.items is not None and part.isdigit():
            kind = kind.items
        elif kind.section is not None:
            kind = fields_of(kind.section).get(part)
        else:
            kind = kind.values
    return kind
