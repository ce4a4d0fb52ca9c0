"""From the text of a recipe to a tree with line numbers, and back. All that YAML alone can get wrong is said here.

The rules are those of OmegaConf's loader: YAML 1.1 scalars, but 1e-5 is a number and dates stay text. We compose nodes
instead of loading values, because nodes know their lines and show keys that are given twice.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from simpo_cli.errors import UserError
from simpo_cli.recipe.tree import Node, Origin, lookup

MAX_BYTES = 64 * 1024
MAX_DEPTH = 20
MAX_VALUES = 5_000
_WIDTH = 80

_FLOAT = re.compile(
    r"""^(?:
     [-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
    |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
_SURPRISING_NUMBER = re.compile(r"^[-+]?(?:0[0-9_]+|[0-9_]+(?::[0-9]+)+(?:\.[0-9_]*)?)$")
_TAG = "tag:yaml.org,2002:"
_TOO_DEEP = f"the values are nested more than {MAX_DEPTH} levels deep"


class _RecipeLoader(yaml.SafeLoader):
    """YAML 1.1 as OmegaConf reads it; deep nesting is refused while it is read, before the stack runs out."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > 2 * MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _RecipeDumper(yaml.SafeDumper):
    """Writes text with quotes wherever our loader would read a plain word as something else."""


for _side in (_RecipeLoader, _RecipeDumper):
    _side.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in entries if tag not in (_TAG + "float", _TAG + "timestamp")]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _side.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+0123456789."))

_NOTICED_LATE = ("end of stream", "<stream end>", "could not find expected ':'")  # what is wrong began further up


def read_text(path: Path, display: str) -> str:
    """The text of a recipe file; only regular files are opened, so a pipe cannot hang the command."""
    try:
        if path.is_dir():
            inside = path / "recipe.yaml"  # the run folder of an earlier run
            fix = f"Did you mean {inside}?" if inside.is_file() else "Name a YAML file, or see: simpo recipe list"
            raise UserError(f"{display} is a folder, not a recipe.", fix)
        if not path.is_file():
            raise UserError(f"{display} is not a regular file.", "Name a YAML file, or see: simpo recipe list")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{display} has {path.stat().st_size:,} bytes.", "A recipe is a short YAML file.")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{display} cannot be read: {error.strerror}.", "Check the name and its permissions.") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte 0x{data[error.start]:02x}"
        raise UserError(
            f"the file is not UTF-8 ({what} at offset {error.start}).",
            f"Save it as UTF-8, for example: iconv -f {'UTF-16' if what == 'UTF-16' else 'LATIN1'} -t UTF-8",
            where=f"{display}:{line}",
        ) from None


def parse_file(text: str, display: str) -> Node:
    """The tree of a recipe file, whose root must be a mapping."""

    def origin_of(line: int) -> Origin:
        return Origin(file=display, line=line)

    node = _compose(text, origin_of)
    if node is None:
        raise origin_of(1).error("the file is empty.", "A recipe needs at least model.path and data.train.")
    tree = _Converter(origin_of).convert(node)
    if not isinstance(tree.value, dict):
        what = "a single value" if tree.is_scalar else "a list"
        raise tree.origin.error(
            f"the file holds {what}, a recipe is a mapping of keys to values.",
            "Begin with lines such as name: my-run. See: simpo recipe show demo",
        )
    return tree


def parse_value(text: str, origin: Origin, path: tuple[str, ...]) -> Node:
    """The value of an override, written as YAML on one line."""
    node = _compose(text, lambda _: origin)
    if node is None:  # only a comment
        return Node(None, origin, "null", plain=True)
    return _Converter(lambda _: origin).convert(node, origin, path)


def scalar_of(text: str) -> Any:
    """What YAML makes of a bare word: 1e-5 becomes a number, true a boolean, anything else stays text."""
    try:
        tag = _RecipeLoader("").resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        return _Converter(lambda _: Origin()).scalar(yaml.ScalarNode(tag, text), Origin()).value
    except UserError:
        return text


def _compose(text: str, origin_of: Callable[[int], Origin]) -> yaml.Node | None:
    try:
        return _RecipeLoader(text).get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        problem = f"the file holds the character U+{code:04X}, which YAML does not allow."
        raise origin_of(line).error(problem, "Delete it; recipes are plain text.") from None
    except yaml.MarkedYAMLError as error:
        late = any(sign in str(error.problem) for sign in _NOTICED_LATE)
        mark = (error.context_mark if late else None) or error.problem_mark or error.context_mark
        line = min(mark.line + 1, len(text.splitlines())) if mark else 1
        raise origin_of(line).error(*_yaml_problem(error, text, line)) from None


def _yaml_problem(error: yaml.MarkedYAMLError, text: str, line: int) -> tuple[str, str]:
    problem = str(error.problem or error.context or "it cannot be parsed")
    lines = text.splitlines()
    indent = re.match(r"[ \t]*", lines[line - 1]) if 0 < line <= len(lines) else None
    if problem == _TOO_DEEP:
        return f"{problem}.", "A recipe is flat: a key, its section, sometimes a list."
    if ("end of stream" in problem or "<stream end>" in problem) and error.context_mark:
        return "a quote or bracket that begins here is never closed.", "Close it, or put quotes around the whole text."
    if "'\\t'" in problem or (indent and "\t" in indent.group()):
        return "the line is indented with a tab, YAML wants spaces.", "Replace the tab by two spaces for each level."
    if "another document" in problem or "single document" in str(error.context):
        return "a second document begins here (---).", "A recipe is one document: keep one and delete the other."
    if "mapping values are not allowed" in problem:
        fix = "Mend the indentation, or put quotes around text that holds a colon and a space."
        return "a colon stands where YAML expects none.", fix
    if "could not find expected ':'" in problem:
        return "the line is not KEY: VALUE.", "Write a colon and a space after the key."
    if "undefined alias" in problem:
        return f"{problem}.", "Define it with &name before *name; text that begins with * needs quotes."
    if "expected <block end>" in problem:
        return "the line does not fit the lines above it.", "Give keys of one section the same number of spaces."
    return f"this is not YAML: {problem}.", "Look at the indentation, quotes, brackets and colons of this line."


class _Converter:
    """Nodes of PyYAML to our tree, with limits: an alias may not expand without end."""

    def __init__(self, origin_of: Callable[[int], Origin]) -> None:
        self.origin_of = origin_of
        self.num_values = 0
        self.constructor = yaml.constructor.SafeConstructor()

    def convert(self, node: yaml.Node, origin: Origin | None = None, path: tuple[str, ...] = ()) -> Node:
        """`origin` is that of the key, for the value of a mapping."""
        origin = origin or self.origin_of(node.start_mark.line + 1)
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            raise origin.error(
                f"the file expands to more than {MAX_VALUES:,} values.",
                "Remove the aliases (*name) that repeat each other.",
            )
        if len(path) > MAX_DEPTH:
            raise origin.error(f"{_TOO_DEEP}.", "Look for an alias (*name) that holds itself.")
        match node:
            case yaml.MappingNode(tag=tag) if tag == _TAG + "map":
                return Node(self._items(node, path), origin)
            case yaml.SequenceNode(tag=tag) if tag == _TAG + "seq":
                return Node([self.convert(item, None, (*path, str(i))) for i, item in enumerate(node.value)], origin)
            case yaml.ScalarNode():
                return self.scalar(node, origin, path)
        raise _foreign_tag(node, origin)

    def scalar(self, node: yaml.ScalarNode, origin: Origin, path: tuple[str, ...] = ()) -> Node:
        plain, text = node.style is None, str(node.value)
        subject = f"{'.'.join(path)} is " if path else ""
        if node.tag == _TAG + "str":
            return Node(_whole(text, origin), origin, text, plain)
        if node.tag not in (_TAG + "null", _TAG + "bool", _TAG + "int", _TAG + "float"):
            raise _foreign_tag(node, origin)
        try:
            value = self.constructor.construct_object(node)
        except (ValueError, KeyError):
            raise origin.error(
                f"{subject}{text[:40]!r}, which YAML cannot read as {node.tag.removeprefix(_TAG)}.",
                "Write a plain number or word.",
            ) from None
        if plain and node.tag in (_TAG + "int", _TAG + "float") and _SURPRISING_NUMBER.match(text):
            raise origin.error(
                f"{subject}{text}, which YAML reads as the number {value}.",
                f"Quote it ('{text}') for text, or write the number that you mean.",
            )
        return Node(value, origin, text, plain)

    def _items(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, Node]:
        items: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key_node, value_node in node.value:
            origin = self.origin_of(key_node.start_mark.line + 1)
            if key_node.tag == _TAG + "merge":
                merged = {**self._merged(value_node, origin, path), **merged}
                continue
            key = self._key(key_node, origin)
            if key in items:
                raise origin.error(
                    f"{'.'.join((*path, key))} is given twice; the first is in {items[key].origin}.", "Keep one."
                )
            items[key] = self.convert(value_node, origin, (*path, key))
        return {**merged, **items}

    def _merged(self, node: yaml.Node, origin: Origin, path: tuple[str, ...]) -> dict[str, Node]:
        """What `<<: *name` brings in; keys written out win over it, earlier ones over later ones."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Node] = {}
        for source in reversed(sources):
            tree = self.convert(source, None, (*path, "<<"))
            if not isinstance(tree.value, dict):
                raise origin.error("<< needs a mapping.", "Write <<: *name, where &name marks a mapping.")
            merged.update(tree.value)
        return merged

    def _key(self, node: yaml.Node, origin: Origin) -> str:
        if isinstance(node, yaml.ScalarNode) and node.tag == _TAG + "str":
            return _whole(str(node.value), origin)
        shown, reading = "a list or mapping", ""
        if isinstance(node, yaml.ScalarNode):
            readings = {"int": "a number", "float": "a number", "bool": "true or false", "null": "null"}
            shown = str(node.value)[:40] or "nothing"
            reading = f", and YAML reads it as {readings.get(node.tag.removeprefix(_TAG), 'something else')}"
        raise origin.error(f"{shown} stands as a key{reading}; keys are words.", "All keys: simpo recipe schema")


def _whole(text: str, origin: Origin) -> str:
    """The text, unless it holds half of a character: no file could be written with it."""
    if any("\ud800" <= char <= "\udfff" for char in text):
        problem = f"{text[:40]!a} holds half of a character (a lone surrogate)."
        raise origin.error(problem, "Write the character itself.")
    return text


def _foreign_tag(node: yaml.Node, origin: Origin) -> UserError:
    tag = node.tag.replace(_TAG, "!!")[:60]
    return origin.error(f"the tag {tag} is not allowed; recipes hold plain values only.", "Delete the tag.")


def to_yaml(tree: Node, *, origins: bool = False, notes: Mapping[str, str] = MappingProxyType({})) -> str:
    """The tree as YAML, two spaces a level; with `origins` a comment on each line says where its value was set.

    Text that holds `${` is written with a backslash, so that it stays text when the file is read.

    Args:
        notes: comments on the lines of single values, by their dotted keys.
    """
    lines = _lines(tree, "")
    if not origins:
        noted = {id(lookup(tree, tuple(key.split(".")))): f" # {note}" for key, note in notes.items()}
        return "\n".join(line + noted.get(id(node), "") for line, node in lines) + "\n"
    longest = max((len(str(node.origin)) for _, node in lines if node is not None), default=0)
    column = max(32, _WIDTH - longest - 3)  # a recipe of usual width then fits a terminal of usual width
    return "\n".join(line if node is None else f"{line.ljust(column)} # {node.origin}" for line, node in lines) + "\n"


def _lines(node: Node, margin: str) -> list[tuple[str, Node | None]]:
    """The lines of a mapping or list, each with the scalar or empty collection that it holds."""
    lines: list[tuple[str, Node | None]] = []
    for key, item in node.below():
        head = f"{margin}-" if isinstance(node.value, list) else f"{margin}{_one_line(key)}:"
        if item.is_scalar or not item.value:
            lines.append((f"{head} {_one_line(_readable(item))}", item))
            continue
        inner = _lines(item, f"{margin}  ")
        if isinstance(node.value, list) and isinstance(item.value, dict):  # its first key stands behind the dash
            first, of_first = inner.pop(0)
            lines.append((f"{head} {first.lstrip(' ')}", of_first))
        else:
            lines.append((head, None))
        lines += inner
    return lines


def _readable(node: Node) -> Any:
    """A value such that it is read again as it is; one of the environment is left to be computed again."""
    if node.expression or not isinstance(node.value, str):
        return node.expression or node.value
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", node.value)


def _one_line(value: Any) -> str:
    """Text with line ends of any alphabet, or other characters that one cannot see, is written with escapes."""
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    text = yaml.dump(value, Dumper=_RecipeDumper, default_style=style, width=float("inf"), allow_unicode=True)
    text = str(text).removesuffix("\n").removesuffix("\n...")
    return text if style is None else "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    """As YAML writes it between double quotes; PyYAML leaves marks of the writing direction as they are."""
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"
