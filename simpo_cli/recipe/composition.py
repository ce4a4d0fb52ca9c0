"""Composition: a name and overrides in, a typed recipe with the origin of every value out.

    file and its defaults -> layers -> + overrides -> one tree -> defaults filled in -> ${...} computed -> Recipe

Nothing here imports torch, and nothing looks at the model, the data or the device: those checks come with the run.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from simpo_cli.errors import UserError
from simpo_cli.names import RecipeFile, find_default, find_recipe, suggest_default
from simpo_cli.recipe.checks import Finding, place_of, refuse_mixed_optimizer, refuse_output_in_input, warnings_of
from simpo_cli.recipe.fields import accepts, schema_at, section_of
from simpo_cli.recipe.interpolation import resolve
from simpo_cli.recipe.schema import Recipe
from simpo_cli.recipe.tree import Node, Origin, Path, lookup, merge, node_of, scalars
from simpo_cli.recipe.validate import MissingKeyError, fill_defaults, to_recipe, with_values, without_unknown
from simpo_cli.recipe.yaml_text import parse_file, parse_value, read_text, to_yaml

REQUIRED = ("model.path", "data.train")
MAX_DEFAULTS_DEPTH = 8
MAX_LAYERS = 64
_KEY = re.compile(r"[A-Za-z_][\w-]*(?:\.[\w-]+)*")
_OTHER_MARGIN = {"gamma": "gamma_beta_ratio", "gamma_beta_ratio": "gamma"}


@dataclass(frozen=True)
class ComposedRecipe:
    """A recipe with its story."""

    name: str  # as it was asked for
    recipe: Recipe
    origins: Mapping[str, Origin]  # dotted key to where it was set; items of lists are KEY.0, KEY.1
    warnings: tuple[Finding, ...]
    tree: Node
    display: str  # the recipe's file, as people see it

    def as_yaml(self, *, origins: bool = False) -> str:
        """The composed recipe with every value written out; it loads again to the same recipe."""
        return to_yaml(self.tree, origins=origins)

    def located(self, error: UserError) -> UserError:
        """An error of the run with the place in the recipe of the key that it is about.

        It is itself where it has a place already, or where it is about no key.
        """
        if error.where or not error.key:
            return error
        parts = error.key.split(".")  # where the key was not written, a section around it was
        enclosing = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
        where = place_of(self.tree, enclosing, self.display)
        located = UserError(error.problem, error.fix, where=where, key=error.key, exit_code=error.exit_code)
        located.is_shared = error.is_shared
        return located


@dataclass(frozen=True)
class Examination:
    """What a look at a recipe finds when nothing may stop it: used by list, show and check."""

    display: str
    tree: Node
    composed: ComposedRecipe | None
    problems: tuple[UserError, ...]  # those of missing keys last
    missing: tuple[str, ...]  # required keys that are not given
    notes: tuple[str, ...]  # names that could have meant something else

    @property
    def is_piece(self) -> bool:
        """Whether the file is meant for the `defaults:` of others: it names no model and no data."""
        return set(self.missing) == set(REQUIRED) and self.tree.value["name"].origin.is_default

    @property
    def faults(self) -> tuple[UserError, ...]:
        """The problems that have to be mended: a piece may leave open what it leaves to others."""
        return self.problems[: len(self.problems) - len(self.missing)] if self.is_piece else self.problems

    @property
    def piece_name(self) -> str:
        """What a recipe of the user would call it in its `defaults:`."""
        return self.display.removeprefix("shipped:").removesuffix(".yaml").removesuffix(".yml")

    def first_error(self) -> UserError:
        """What to say to a person who wants to run this."""
        if self.faults:
            return self.faults[0]
        name = self.piece_name
        return UserError(
            f"{name} is a piece to compose into another recipe: it gives no model.path or data.train.",
            f"Name it in a recipe of yours, for example defaults: [paper/llama3-8b-instruct, {name}]",
            where=self.display,
        )


def compose(name_or_path: str, overrides: Sequence[str] = ()) -> ComposedRecipe:
    """Load, join, compute and check a recipe.

    Args:
        name_or_path: a YAML file, or the name of a shipped recipe such as `demo`.
        overrides: `KEY=VALUE` with dotted keys, applied in order on top of the files.

    Raises:
        UserError: with the place of the first thing that is wrong.
    """
    examination = examine(name_or_path, overrides)
    if examination.composed is None:
        raise examination.first_error()
    return examination.composed


def examine(name_or_path: str, overrides: Sequence[str] = ()) -> Examination:
    """Compose as far as it goes and collect every problem; raises only where the text cannot be joined at all."""
    file = find_recipe(name_or_path)
    layers, notes = _file_layers(file)
    layers += [_override_layer(text, Origin(override=number)) for number, text in enumerate(overrides, start=1)]
    written, problems = without_unknown(_stack(layers))
    written.value.setdefault("name", Node(file.path.stem))
    filled = fill_defaults(written)
    _keep_one_margin(filled)
    tree = resolve(filled, absent=("name", *REQUIRED))
    recipe, wrong = to_recipe(tree, file.display)
    problems += wrong
    problems.sort(key=lambda problem: isinstance(problem, MissingKeyError))  # what is missing comes last
    missing = tuple(problem.key for problem in problems if isinstance(problem, MissingKeyError))
    composed = None
    if recipe is not None and not problems:
        tree = with_values(tree, recipe)
        try:
            refuse_output_in_input(recipe, tree, file.display)
            refuse_mixed_optimizer(recipe, tree, file.display)
            origins = {".".join(path): node.origin for path, node in scalars(tree)}
            shadowed = [Finding("REC012", "note", file.display, f"{note}.") for note in notes]
            warnings = (*shadowed, *warnings_of(recipe, tree, file.display))
            composed = ComposedRecipe(name_or_path, recipe, MappingProxyType(origins), warnings, tree, file.display)
        except UserError as error:
            problems.append(error)
    return Examination(file.display, tree, composed, tuple(problems), missing, tuple(notes))


def _file_layers(file: RecipeFile) -> tuple[list[Node], list[str]]:
    """The trees of a recipe file and of everything in its `defaults:`, lowest first, and notes on shadowed names."""
    layers: list[Node] = []
    notes = [file.note] if file.note else []

    def collect(file: RecipeFile, above: tuple[RecipeFile, ...], named: Origin) -> None:
        resolved = file.path.resolve()
        if any(resolved == other.path.resolve() for other in above):
            chain = " -> ".join(other.display for other in (*above, file))
            raise named.error(f"defaults go round in a circle: {chain}.", "Remove one of these names.")
        if len(above) >= MAX_DEFAULTS_DEPTH or len(layers) >= MAX_LAYERS:
            problem = f"defaults are nested more than {MAX_DEFAULTS_DEPTH} deep or name more than {MAX_LAYERS} files."
            raise named.error(problem, "Put what the files share into one of them.")
        tree = parse_file(read_text(file.path, file.display), file.display)
        for name, origin in _defaults_of(tree):
            found = find_default(name, file)
            if found is None:
                raise origin.error(f"defaults names {name!r}, which does not exist.", suggest_default(name))
            if found.path.is_dir():
                raise origin.error(f"defaults names {name!r}, which is a folder.", "Name one recipe in it.")
            if found.note and found.note not in notes:
                notes.append(found.note)
            collect(found, (*above, file), origin)
        layers.append(tree)

    collect(file, (), Origin())
    return layers, notes


def _defaults_of(tree: Node) -> list[tuple[str, Origin]]:
    """Take `defaults` out of a layer: names with the places they stand in."""
    node = tree.value.pop("defaults", Node([]))
    names = []
    for item in node.value if isinstance(node.value, list) else [node]:
        name, origin = item.value, item.origin
        if not isinstance(name, str) or not name.strip():
            fix = "For example: defaults: [paper/llama3-8b-instruct, lora]"
            raise origin.error("defaults must be the name of a recipe, or a list of names.", fix)
        if "${" in name:
            raise origin.error("defaults cannot use ${...}: they are read before values are known.", "Write the name.")
        names.append((name.strip(), origin))
    return names


def _override_layer(text: str, origin: Origin) -> Node:
    """The small tree of an override."""
    path, value = _split_override(text, origin)
    if path[0] == "defaults":
        raise origin.error(
            "defaults cannot be changed from the command line.",
            "Write a recipe that begins with defaults: [...], and name that.",
        )
    node = _value_of_override(value, path, origin)
    for part in reversed(path):
        node = Node({part: node}, origin)
    return node


def _split_override(text: str, origin: Origin) -> tuple[Path, str]:
    shown = text if text.isprintable() and len(text) <= 60 else repr(text)[:60]
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise origin.error("the text is not UTF-8.", "Type it again in a UTF-8 terminal.")
    key, equals, value = text.partition("=")
    key = re.sub(r"\[(\d+)\]", r".\1", key)  # data.train[0].path is data.train.0.path
    if not equals:
        fix = "Write it as train.max_steps=30, without spaces around the equals sign."
        if text.endswith((".yaml", ".yml")) or os.path.isfile(text):
            fix = "One recipe is named first; to join several, list them under defaults: in a file."
        elif ":" in text and text.isprintable():
            fix = f"Did you mean {text.replace(': ', '=').replace(':', '=', 1)}?"
        raise origin.error(f"{shown!r} is not KEY=VALUE.", fix)
    if _KEY.fullmatch(bare := key.lstrip("+~-")) and bare != key:
        raise origin.error(f"{shown!r} does not begin with a key.", f"Did you mean {bare}=...?")
    if not _KEY.fullmatch(key):
        raise origin.error(
            f"{shown!r} does not begin with a key.", "A key is words joined by dots, such as train.max_steps=30."
        )
    return tuple(key.split(".")), value


def _value_of_override(text: str, path: Path, origin: Origin) -> Node:
    """The value by the kind of its key: where text is wanted, no and 12:30 are text, and need no quotes."""
    schema, stripped = schema_at(path), text.strip()
    looks_structured = stripped[:1] in ("[", "{", "'", '"')
    if accepts(schema, "string") and not looks_structured:
        if accepts(schema, "null") and stripped in ("null", "~"):
            return Node(None, origin, stripped, plain=True)
        return Node(text, origin, text)
    if not stripped:
        raise origin.error(f"{'.'.join(path)} is given no value.", f"Write it after the equals sign: {path[-1]}=...")
    if stripped in ("null", "~") and section_of(schema) and not accepts(schema, "null", "array"):
        raise origin.error(f"{'.'.join(path)} is a section and cannot be null.", "Set its keys one by one.")
    return parse_value(text, origin, path)


def _stack(layers: list[Node]) -> Node:
    """All layers laid over each other, the last one on top."""
    merged = Node({})
    for layer in layers:
        for key, node in layer.below():
            if node.value is None and section_of(schema_at((key,))):  # every line below it is commented out
                del layer.value[key]
        named = _margins(layer)
        if len(named) == 2:
            later = max((node.origin for node in named.values()), key=lambda origin: origin.line or 0)
            raise later.error(
                "loss.gamma and loss.gamma_beta_ratio say one thing in two ways, and both are given.",
                "Keep one: gamma is gamma_beta_ratio times beta.",
            )
        for key, node in named.items():  # it clears the other one in the layers below
            layer.value["loss"].value[_OTHER_MARGIN[key]] = Node(None, node.origin)
        merged = merge(merged, layer)
    return merged


def _margins(tree: Node) -> dict[str, Node]:
    """Those of gamma and gamma_beta_ratio that a tree gives."""
    given = {key: lookup(tree, ("loss", key)) for key in _OTHER_MARGIN}
    return {key: node for key, node in given.items() if node is not None and node.value is not None}


def _keep_one_margin(tree: Node) -> None:
    """Exactly one of gamma and gamma_beta_ratio stays in the tree: the one that was given, else the ratio 0.5."""
    loss = tree.value["loss"].value
    if not isinstance(loss, dict):
        return
    given = _margins(tree) or {"gamma_beta_ratio": node_of(0.5)}
    for key in _OTHER_MARGIN:
        if key not in given:
            loss.pop(key, None)
    loss |= given
