"""${...} in values: other keys of the recipe, and environment variables that are not secrets.

OmegaConf computes the values. Before that we look at the forms, because OmegaConf alone would write a token into the
recipe of the run, and at the graph of references, because `a: ${b}${b}`, `b: ${c}${c}` ... doubles with each line.
What comes from the environment, by whatever way, keeps the words that it was written in beside its value.
"""

import difflib
import functools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from simpo_cli.errors import UserError
from simpo_cli.recipe.fields import all_keys, choices
from simpo_cli.recipe.tree import Node, Path, changed, lookup, node_of, plain_value, scalars
from simpo_cli.redaction import remember

_START = re.compile(r"(\\*)\$\{")
_ENVIRONMENT = re.compile(r"\s*oc\.env\s*:\s*([A-Za-z_]\w*)\s*([,}])")
_REFERENCE = re.compile(r"\s*(\.*)([A-Za-z_][\w-]*(?:\.[\w-]+|\[\d+\])*)\s*\}")
_RESOLVER = re.compile(r"\s*([\w.]+)\s*:")
_SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\b(?:hf_|sk-|ghp_|github_pat_|xox[bp]-|AKIA)[A-Za-z0-9_-]{16,}")
_FROM_ENVIRONMENT: Path = ("oc.env",)  # stands for a key that no recipe can have
MAX_EXPANSIONS = 1_000


def resolve(tree: Node, absent: Sequence[str] = ()) -> Node:
    """The tree with every ${...} computed.

    What refers to one of the `absent` keys that really is not there stays as it is: a required key that is missing
    has an error of its own.
    """
    computed = {path: node for path, node in scalars(tree) if isinstance(node.value, str) and "${" in node.value}
    if not computed:
        return tree
    gaps = {key for key in map(_parts, absent) if (given := lookup(tree, key)) is None or given.is_open}
    references = {path: list(_references(path, node, tree, gaps)) for path, node in computed.items()}
    while waiting := [path for path, targets in references.items() if gaps & {path, *targets}]:
        gaps.update(waiting)
        for path in waiting:
            del references[path], computed[path]
    _check_graph(references, computed)
    values = _evaluate(plain_value(tree), computed)
    of_environment = _of_environment(references)

    def with_value(node: Node, path: Path) -> Node:
        if path not in values:
            return node
        value = values[path]
        if path not in of_environment:
            if isinstance(value, dict | list):
                return node_of(value, node.origin)
            return Node(value, node.origin, str(value), interpolated=True)
        if isinstance(value, dict | list):  # the value is one reference, to a section or a list
            [target] = references[path]
            found = lookup(tree, target)
            assert found is not None
            return changed(changed(found, with_value, target), lambda below, _: replace(below, origin=node.origin))
        expression = _with_whole_names(node.value, path)
        return Node(value, node.origin, expression, interpolated=True, expression=expression)

    return changed(tree, with_value)


def _references(path: Path, node: Node, tree: Node, gaps: set[Path]) -> Iterator[Path]:
    """What a value refers to, keys or the environment, once each of its ${ is found to be of a form that is allowed."""
    text = node.value
    starts = list(_START.finditer(text))
    active = [match for match in starts if len(match.group(1)) % 2 == 0]
    if active and len(active) < len(starts):
        raise _error(path, node, "mixes ${...} and \\${...}", "Use one of the two in a value.")
    for match in active:
        rest = text[match.end() :]
        if found := _ENVIRONMENT.match(rest):
            _check_environment(path, node, found.group(1), has_default=found.group(2) == ",")
            yield _FROM_ENVIRONMENT
        elif found := _REFERENCE.match(rest):
            dots, name = found.groups()
            target = (*path[: -len(dots)], *_parts(name)) if dots else _parts(name)
            if lookup(tree, target) is None and target not in gaps:
                name = ".".join(target)
                close = difflib.get_close_matches(name, [".".join(other) for other, _ in scalars(tree)], n=1)
                fix = "Name a key of this recipe, such as ${name} or ${loss.beta}."
                fix = f"Did you mean ${{{close[0]}}}?" if close else fix
                raise _error(path, node, f"refers to ${{{name}}}, which the recipe does not have", fix)
            yield target
        elif found := _RESOLVER.match(rest):
            fix = "Use ${oc.env:NAME} for an environment variable, ${section.key} for another key."
            raise _error(path, node, f"uses ${{{found.group(1)}:...}}, which is not known here", fix)
        else:
            fix = "Close it with }, or write \\${ for these two characters themselves."
            raise _error(path, node, "holds a ${ that is not ${section.key} or ${oc.env:NAME}", fix)


def _parts(name: str) -> Path:
    return tuple(re.sub(r"\[(\d+)\]", r".\1", name).split("."))


def _error(path: Path, node: Node, problem: str, fix: str) -> UserError:
    return node.origin.error(f"{'.'.join(path)} {problem}.", fix)


def _check_environment(path: Path, node: Node, name: str, *, has_default: bool) -> None:
    """A recipe is copied into the run folder, so a secret must not come into it."""
    if _SECRET_NAME.search(name) or _SECRET_VALUE.search(os.environ.get(name, "")):
        fix = "The composed recipe is written to disk. Programs that need the secret read it from the environment."
        raise _error(path, node, f"reads the environment variable {name}, which looks like a secret", fix)
    if name not in os.environ and not has_default:
        fix = f"Set it, or give a default: ${{oc.env:{name},VALUE}}"
        raise _error(path, node, f"reads the environment variable {name}, which is not set", fix)
    value = os.environ.get(name, "")
    if value not in _own_words():
        remember(name, value)


@functools.cache
def _own_words() -> frozenset[str]:
    """What a recipe may say without help from outside: `cosine`, `builtin:guide`."""
    return frozenset({"builtin:guide"}.union(*(choices(schema) for schema in all_keys().values())))


def _check_graph(references: dict[Path, list[Path]], computed: dict[Path, Node]) -> None:
    """No cycle, and no value that expands without end."""
    sizes: dict[Path, int] = {}

    def size(path: Path, above: tuple[Path, ...]) -> int:
        if path in above:
            chain = " -> ".join(".".join(step) for step in (*above[above.index(path) :], path))
            raise _error(path, computed[path], f"refers to itself: {chain}", "Give one of these a plain value.")
        if path not in sizes:
            total = 1
            for target in references[path]:
                below = [other for other in references if other[: len(target)] == target]
                total += sum(size(other, (*above, path)) for other in below)
            if total > MAX_EXPANSIONS:
                problem = f"expands to more than {MAX_EXPANSIONS:,} values"
                raise _error(path, computed[path], problem, "Write it out.")
            sizes[path] = total
        return sizes[path]

    for path in references:
        size(path, ())


def _evaluate(plain: dict[str, Any], computed: dict[Path, Node]) -> dict[Path, Any]:
    from omegaconf import Container, OmegaConf  # imported late: a recipe without ${...} does not need it
    from omegaconf.errors import OmegaConfBaseException

    values: dict[Path, Any] = {}
    config: Any = None
    for path, node in computed.items():
        try:
            config = OmegaConf.create(plain) if config is None else config
            value: Any = config
            for part in path:
                value = value[int(part) if OmegaConf.is_list(value) else part]
            values[path] = OmegaConf.to_container(value, resolve=True) if isinstance(value, Container) else value
        except OmegaConfBaseException as error:
            problem = f"cannot be computed: {str(error).splitlines()[0].rstrip('.')}"
            raise _error(path, node, problem, "Write ${section.key} or ${oc.env:NAME}.") from None
    return values


def _of_environment(references: dict[Path, list[Path]]) -> set[Path]:
    """The values that come from the environment, of themselves or through others."""
    found = {_FROM_ENVIRONMENT}

    def leads_there(path: Path) -> bool:
        return any(other[: len(target)] == target for target in references[path] for other in found)

    while more := {path for path in references.keys() - found if leads_there(path)}:
        found |= more
    return found


def _with_whole_names(text: str, path: Path) -> str:
    """References from the root on: `${.path}` means another key where the list that it stands in is used again."""

    def whole(found: re.Match[str]) -> str:
        dots, name = found.groups()
        return f"${{{'.'.join((*path[: -len(dots)], name)) if dots else name}}}"

    return re.sub(r"\$\{" + _REFERENCE.pattern, whole, text)
