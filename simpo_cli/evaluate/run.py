"""`simpo eval`: a model scored on held-out pairs, from a recipe, a run folder or a model folder."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.prepare import encode_source, prepare_data, prepare_tokenizer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.opening import open_model
from simpo_cli.evaluate.summary import EvalSummary, summarise
from simpo_cli.model.fit import require_lengths
from simpo_cli.model.load import find_model
from simpo_cli.recipe import compose, find_recipe
from simpo_cli.recipe.schema import DataSource, Recipe


@dataclass(frozen=True)
class Evaluation:
    """One model on one set of pairs: the names of both, and what was measured."""

    model: str
    data: str
    summary: EvalSummary


def evaluate_target(target: str, overrides: Sequence[str]) -> Evaluation:
    """Score the eval pairs of what `target` names.

    Args:
        target: a run folder (its saved model, its held-out pairs), a model folder or hub id (with `data.eval=FILE`
            among the overrides, unless it is the model of a run), or a recipe (its start model).
        overrides: `KEY=VALUE`, as for training.

    Raises:
        UserError: the target is none of these, or there are no pairs to score.
    """
    recipe = _recipe_of(target, overrides)
    source = find_model(recipe.model.path, recipe.model.revision)
    require_lengths(recipe, source)
    pairs, data = _eval_pairs(recipe)
    scores = open_model(recipe, source, pairs).score(pairs)
    return Evaluation(recipe.model.path, data, summarise(scores, recipe.loss))


def _recipe_of(target: str, overrides: Sequence[str]) -> Recipe:
    path = Path(target)
    if (path / "run.json").is_file():
        if not (path / "model").is_dir():
            raise UserError(
                f"the run {target} has no model yet.",
                "Let the run finish; its checkpoints are in the folder checkpoints.",
                exit_code=ExitCode.ENVIRONMENT,
            )
        return compose(str(path / "recipe.yaml"), [f"model.path={path / 'model'}", *overrides]).recipe
    if _is_model(path):
        if (path.parent / "run.json").is_file():
            return compose(str(path.parent / "recipe.yaml"), [f"model.path={path}", *overrides]).recipe
        return _recipe_for_model(target, overrides)
    if path.is_dir():
        raise UserError(
            f"{target} is a folder, but neither a run nor a model.",
            "Name a run folder (with run.json), a model folder (with config.json) or a recipe.",
        )
    try:
        find_recipe(target)
    except UserError as error:
        if target.count("/") == 1 and not target.startswith((".", "/", "~")) and not target.endswith((".yaml", ".yml")):
            return _recipe_for_model(target, overrides)
        raise UserError(
            f"{target} is neither a run, nor a model folder, nor a recipe.",
            "Name one that is there; simpo recipe list shows the shipped recipes.",
        ) from error
    return compose(target, overrides).recipe


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file() or (path / "adapter_config.json").is_file()


def _recipe_for_model(target: str, overrides: Sequence[str]) -> Recipe:
    """A model by itself has no recipe: the defaults, with the pairs that the overrides name."""
    sources = [override for override in overrides if override.startswith("data.eval=")]
    if not sources:
        raise UserError(f"{target} is a model, and nothing says which pairs to score.", "Add data.eval=FILE behind it.")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "eval.yaml")
        file.write_text("name: eval\n", encoding="utf-8")
        train = sources[-1].replace("data.eval=", "data.train=", 1)
        return compose(str(file), [f"model.path={target}", train, *overrides]).recipe


def _eval_pairs(recipe: Recipe) -> tuple[Sequence[EncodedPair], str]:
    """The pairs that training holds out: those of data.eval, or the same share of the training pairs."""
    if recipe.data.eval is None:
        data = prepare_data(recipe)
        pairs, name = data.held_out, f"held out of {_names(recipe.data.train)}"
    else:
        pairs = encode_source(recipe.data.eval, "eval", recipe.data, prepare_tokenizer(recipe)).pairs
        name = _names(recipe.data.eval)
    if not pairs:
        raise UserError("there are no pairs to score.", "Set data.eval to a file of pairs, or data.holdout above 0.")
    return pairs, name


def _names(sources: str | list[DataSource]) -> str:
    return sources if isinstance(sources, str) else ", ".join(source.path for source in sources)
