"""Composition: a name and overrides in, a typed recipe with the origin of every value out.

    file and its defaults -> layers -> + overrides -> one tree -> defaults filled in -> ${...} computed -> Recipe

Nothing here imports torch, and nothing looks at the model, the data or the device: those checks come with the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from simpo_cli.errors import UserError
from simpo_cli.names import find_recipe
from simpo_cli.recipe.checks import Finding, place_of, refuse_output_in_input, warnings_of
from simpo_cli.recipe.dump import to_yaml
from simpo_cli.recipe.interpolation import resolve
from simpo_cli.recipe.layers import file_layers, override_layers, stack
from simpo_cli.recipe.schema import Recipe
from simpo_cli.recipe.tree import DEFAULT, MappingNode, Origin, ScalarNode, node_of, scalars
from simpo_cli.recipe.validate import MissingKeyError, fill_defaults, to_recipe, with_values, without_unknown

REQUIRED = ("model.path", "data.train")


@dataclass(frozen=True)
class ComposedRecipe:
    """A recipe with its story."""

    name: str  # as it was asked for
    recipe: Recipe
    origins: Mapping[str, Origin]  # dotted key to where it was set; items of lists are KEY.0, KEY.1
    warnings: tuple[Finding, ...]
    tree: MappingNode
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
        return UserError(error.problem, error.fix, where=where, key=error.key, exit_code=error.exit_code)


@dataclass(frozen=True)
class Examination:
    """What a look at a recipe finds when nothing may stop it: used by list, show and check."""

    display: str
    tree: MappingNode
    composed: ComposedRecipe | None
    problems: tuple[UserError, ...]  # those of missing keys last
    missing: tuple[str, ...]  # required keys that are not given
    notes: tuple[str, ...]  # names that could have meant something else

    @property
    def is_piece(self) -> bool:
        """Whether the file is meant for the `defaults:` of others: it names no model and no data."""
        return set(self.missing) == set(REQUIRED) and self.tree.items["name"].origin.is_default

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
    layers, notes = file_layers(file)
    layers += override_layers(overrides)
    written, problems = without_unknown(stack(layers))
    written.items.setdefault("name", ScalarNode(file.path.stem, DEFAULT))
    tree = resolve(_with_margin(fill_defaults(written)), absent=("name", *REQUIRED))
    recipe, wrong = to_recipe(tree, file.display)
    problems += wrong
    problems.sort(key=lambda problem: isinstance(problem, MissingKeyError))  # what is missing comes last
    missing = tuple(problem.key for problem in problems if isinstance(problem, MissingKeyError))
    composed = None
    if recipe is not None and not problems:
        tree = with_values(tree, recipe)
        try:
            refuse_output_in_input(recipe, tree, file.display)
            composed = _composed(name_or_path, recipe, tree, file.display, notes)
        except UserError as error:
            problems.append(error)
    return Examination(file.display, tree, composed, tuple(problems), missing, tuple(notes))


def _composed(name: str, recipe: Recipe, tree: MappingNode, display: str, notes: list[str]) -> ComposedRecipe:
    origins = {".".join(path): node.origin for path, node in scalars(tree)}
    shadowed = [Finding("REC012", "note", display, f"{note}.") for note in notes]
    return ComposedRecipe(
        name, recipe, MappingProxyType(origins), (*shadowed, *warnings_of(recipe, tree, display)), tree, display
    )


def _with_margin(tree: MappingNode) -> MappingNode:
    """Exactly one of gamma and gamma_beta_ratio stays in the tree: the one that was given, else the ratio 0.5."""
    loss = tree.items["loss"]
    if not isinstance(loss, MappingNode):
        return tree
    items = dict(loss.items)
    given = [key for key in ("gamma", "gamma_beta_ratio") if not _null(items.get(key))]
    if not given:
        items["gamma_beta_ratio"] = node_of(0.5, DEFAULT)
        given = ["gamma_beta_ratio"]
    for key in ("gamma", "gamma_beta_ratio"):
        if key not in given:
            items.pop(key, None)
    return MappingNode({**tree.items, "loss": MappingNode(items, loss.origin)}, tree.origin)


def _null(node: object) -> bool:
    return node is None or (isinstance(node, ScalarNode) and node.value is None)
