"""A recipe written out: as YAML that loads again, its objective in one line, and how two recipes differ."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import yaml

from simpo_cli.recipe.interpolation import escape, has_interpolation
from simpo_cli.recipe.schema import LossRecipe, Recipe
from simpo_cli.recipe.tree import ListNode, MappingNode, Node, ScalarNode
from simpo_cli.recipe.yaml_source import RecipeDumper

_WIDTH = 80


def to_yaml(tree: MappingNode, *, origins: bool = False) -> str:
    """The tree as YAML, two spaces a level; with `origins` a comment on each line says where its value was set.

    Text that holds `${` is written with a backslash, so that it stays text when the file is read.
    """
    lines = _mapping(tree, 0)
    if not origins:
        return "\n".join(line for line, _ in lines) + "\n"
    longest = max((len(str(node.origin)) for _, node in lines if node is not None), default=0)
    column = max(32, _WIDTH - longest - 3)  # a recipe of usual width then fits a terminal of usual width
    return "\n".join(line if node is None else f"{line.ljust(column)} # {node.origin}" for line, node in lines) + "\n"


_Lines = list[tuple[str, Node | None]]


def _mapping(tree: MappingNode, indent: int) -> _Lines:
    lines: _Lines = []
    for key, node in tree.items.items():
        lines += _entry(" " * indent + _one_line(key) + ":", node, indent + 2)
    return lines


def _entry(head: str, node: Node, indent: int) -> _Lines:
    match node:
        case ScalarNode():
            return [(f"{head} {_scalar(node)}", node)]
        case ListNode(items=[]):
            return [(f"{head} []", node)]
        case MappingNode(items=items) if not items:
            return [(f"{head} {{}}", node)]
        case ListNode():
            return [(head, None), *_list(node, indent)]
        case MappingNode():
            return [(head, None), *_mapping(node, indent)]


def _list(node: ListNode, indent: int) -> _Lines:
    lines: _Lines = []
    for item in node.items:
        if isinstance(item, MappingNode) and item.items:
            below = _mapping(item, indent + 2)
            first, first_node = below[0]
            lines += [(" " * indent + "- " + first[indent + 2 :], first_node), *below[1:]]
        elif isinstance(item, ListNode) and item.items:
            lines += [(" " * indent + "-", None), *_list(item, indent + 2)]
        else:
            lines += _entry(" " * indent + "-", item, indent + 2)
    return lines


def _scalar(node: ScalarNode) -> str:
    """One value on one line; one of the environment is left to be computed again."""
    if node.expression:
        return _one_line(node.expression)
    value = node.value
    return _one_line(escape(value) if isinstance(value, str) and has_interpolation(value) else value)


def _one_line(value: Any) -> str:
    """Text with line ends of any alphabet, or other characters that one cannot see, is written with escapes."""
    return _dumped(value, '"' if isinstance(value, str) and not value.isprintable() else None)


def _dumped(value: Any, style: str | None) -> str:
    text = yaml.dump(value, Dumper=RecipeDumper, default_style=style, width=float("inf"), allow_unicode=True)
    text = str(text).removesuffix("\n").removesuffix("\n...")
    return text if style is None else "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    """As YAML writes it between double quotes; PyYAML leaves marks of the writing direction as they are."""
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"


_NAMES = ("name", "output_dir")  # say where a run lies, not what it does


def differences(first: Recipe, second: Recipe, *, items: bool = False) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, dotted, in the order of the schema, each with both values.

    gamma and its ratio are compared as both of what they come to; names and folders of the runs are left out.

    Args:
        items: as of `flat`.
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

    Args:
        items: the mappings of a list key by key as well, under its numbers: `data.train.0.path`.
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


def loss_terms(loss: LossRecipe) -> str:
    """SimPO, sigmoid · beta 2 · gamma 1 (gamma/beta 0.5) · label smoothing off · SFT term off."""
    return " · ".join(
        (
            f"SimPO, {loss.type}",
            f"beta {loss.beta:g}",
            f"gamma {loss.margin:g} (gamma/beta {loss.margin_beta_ratio:g})",
            f"label smoothing {loss.label_smoothing:g}" if loss.label_smoothing else "label smoothing off",
            f"SFT term {loss.sft_weight:g}" if loss.sft_weight else "SFT term off",
        )
    )
