"""Several models at once: each two on the pairs that both have, and runs that differ only by their seed."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from simpo_cli.assess.assessment import Assessed, Failure
from simpo_cli.assess.held_out import align
from simpo_cli.evaluate.comparison import compare_scores
from simpo_cli.evaluate.summary import SCHEMA_VERSION
from simpo_cli.recipe import Recipe
from simpo_cli.recipe.differences import differences
from simpo_cli.recipe.schema import TrackingRecipe
from simpo_cli.statistics import Measured, holm, over_seeds


def document_of(assessed: Sequence[Assessed], failed: Sequence[Failure], *, is_one: bool) -> dict[str, Any]:
    """The document of `simpo eval --json`.

    Args:
        assessed: the models that were scored.
        failed: those that were not.
        is_one: whether one model was named; its document is then the whole.
    """
    documents = [one.as_json() for one in assessed]
    comparisons = [_compared(*two) for two in combinations(assessed, 2)]
    tests = [document["difference"] for document in documents if document["difference"] is not None]
    tests += [comparison["difference"] for comparison in comparisons if comparison["difference"] is not None]
    for test, p_value in zip(tests, holm([test["p_value"] for test in tests]), strict=True):
        test["p_value_holm"] = p_value
    if is_one:
        return documents[0]
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluations": documents,
        "comparisons": comparisons,
        "seeds": [_over(group) for group in _same_but_for_the_seed(assessed)],
        "failed": [failure.as_json() for failure in failed],
    }


def _compared(first: Assessed, second: Assessed) -> dict[str, Any]:
    """The second less the first."""
    shared = align(first.held_out.pairs, second.held_out.pairs)
    recipes = (first.target.of_run, second.target.of_run)
    compared: dict[str, Any] = {
        "models": [first.target.name, second.target.name],
        "pairs": len(shared.first),
        "swapped": shared.swapped,
        "recipes": None if None in recipes else _told(*(recipe for recipe in recipes if recipe is not None)),
        "difference": None,
    }
    if len(shared.first):
        loss, other = first.target.recipe.loss, second.target.recipe.loss
        same_rewards = (loss.type, loss.beta, loss.margin) == (other.type, other.beta, other.margin)
        comparison = compare_scores(
            first.scores.select(shared.first.tolist()),
            second.scores.select(shared.second.tolist()),
            loss,
            rewards_compare=shared.same_tokens and same_rewards,
        )
        compared["difference"] = {
            **comparison.as_json(),
            "same_tokens": shared.same_tokens,
            "same_rewards": same_rewards,
        }
    return compared


def _told(first: Recipe, second: Recipe) -> list[dict[str, Any]]:
    return [{"key": key, "values": list(values)} for key, values in differences(first, second).items()]


def _same_but_for_the_seed(assessed: Sequence[Assessed]) -> list[list[Assessed]]:
    """Finished runs of one recipe with other seeds, on the same pairs; groups of at least two."""
    groups: dict[tuple[Any, ...], list[Assessed]] = {}
    for one in assessed:
        recipe = one.target.of_run
        if recipe is not None and one.target.checkpoint is None:
            plain = replace(recipe, name="any", output_dir="any", seed=0, tracking=TrackingRecipe())
            groups.setdefault((repr(plain), one.held_out.key), []).append(one)
    return [group for group in groups.values() if len({_seed(one) for one in group}) == len(group) > 1]


def _seed(one: Assessed) -> int:
    assert one.target.of_run is not None, "only runs have a seed"
    return one.target.of_run.seed


def _over(group: Sequence[Assessed]) -> dict[str, Any]:
    """Means over the runs of a group, each with its t interval; n counts runs."""
    documents = [one.as_json() for one in group]
    paths = {
        "accuracy": ("accuracy",),
        "length_balanced": ("length", "balanced"),
        "margin": ("margin",),
        "loss": ("loss",),
        "difference": ("difference", "accuracy"),
        "length_balanced_difference": ("difference", "length_balanced"),
    }
    means = {name: _mean_of(documents, path) for name, path in paths.items()}
    for name in ("accuracy", "length_balanced"):  # shares, whatever the t interval of a few runs says
        mean = means[name]
        means[name] = mean and replace(mean, low=max(0.0, mean.low), high=min(1.0, mean.high))
    return {
        "models": [one.target.name for one in group],
        "seeds": [_seed(one) for one in group],
        **{name: None if mean is None else mean.as_json() for name, mean in means.items()},
    }


def _mean_of(documents: Sequence[dict[str, Any]], path: tuple[str, ...]) -> Measured | None:
    values: list[float] = []
    for document in documents:
        found: Any = document
        for key in path:
            found = None if found is None else found[key]
        if found is None:
            return None
        values.append(found["value"])
    return over_seeds(values)
