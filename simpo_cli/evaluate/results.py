"""The results of `simpo eval`: of each model, of each two on the pairs that both have, and of runs that differ only by
their seed. The JSON document is their serialisation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from simpo_cli.errors import UserError
from simpo_cli.evaluate.held_out import HeldOut, align
from simpo_cli.evaluate.metrics import SCHEMA_VERSION, ModelComparison, Slice, compare_scores, summarise
from simpo_cli.evaluate.noise import Noise
from simpo_cli.evaluate.scoring import PairScores
from simpo_cli.evaluate.targets import Target
from simpo_cli.objective import Objective
from simpo_cli.recipe import Recipe
from simpo_cli.recipe.dump import differences
from simpo_cli.recipe.schema import TrackingRecipe
from simpo_cli.statistics import Measured, holm, over_seeds


@dataclass(frozen=True)
class BaselineComparison:
    """Another model on the same pairs.

    Attributes:
        name: the model.
        scores: of the pairs that both have, in the order of the model that is held against it.
        comparison: that model less this one.
        same_tokens: whether both score the same tokens.
    """

    name: str
    scores: PairScores
    comparison: ModelComparison
    same_tokens: bool


@dataclass(frozen=True)
class Failure:
    """A model that could not be scored, and why."""

    model: str
    error: UserError

    def as_json(self) -> dict[str, Any]:
        """As `failed` and `not_compared` of the document hold it."""
        error = self.error
        return {
            "model": self.model,
            "problem": error.problem,
            "fix": error.fix,
            "where": error.where,
            "exit_code": int(error.exit_code),
        }


@dataclass(frozen=True)
class Assessed:
    """One model and what was measured of it.

    Attributes:
        target: the model.
        held_out: its pairs.
        scores: of these pairs, as the saved model gives them.
        packing: how pairs went through the model, with the self-check's evidence.
        noise: of the baseline's scores, or of its own where there are none.
        baseline: what it is held against.
        not_compared: what it was to be held against, and why it is not.
        save: the float32 weights that it was saved from.
        surface: accuracy of a classifier of surface features that was fitted on the training pairs.
        slices: by column.
        values: of each pair, by column.
    """

    target: Target
    held_out: HeldOut
    scores: PairScores
    packing: str
    noise: Noise
    baseline: BaselineComparison | None = None
    not_compared: Failure | None = None
    save: BaselineComparison | None = None
    surface: Measured | None = None
    slices: Mapping[str, Sequence[Slice]] = field(default_factory=dict)
    values: Mapping[str, Sequence[str | None]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The document of `simpo eval --json` for one model."""
        loss, baseline = self.target.recipe.loss, self.baseline
        document = summarise(self.scores, loss).as_json(model=self.target.name, data=self.held_out.name)
        document["baselines"]["surface"] = None if self.surface is None else self.surface.as_json()
        return {
            **document,
            "objective": {"type": loss.type, "beta": loss.beta, "gamma": loss.margin},
            "packing": self.packing,
            "token_cache": self.held_out.cache,
            "noise": self.noise.as_json(),
            "baseline": None if baseline is None else self._baseline_as_json(baseline, document["baselines"]),
            "difference": None if baseline is None else self._difference_as_json(baseline),
            "not_compared": None if self.not_compared is None else self.not_compared.as_json(),
            "save": None if self.save is None else self._save_as_json(self.save),
            "slices": {column: [one.as_json() for one in slices] for column, slices in self.slices.items()},
        }

    def _baseline_as_json(self, baseline: BaselineComparison, rules: Mapping[str, Any]) -> dict[str, Any]:
        document = summarise(baseline.scores, self.target.recipe.loss).as_json(
            model=baseline.name, data=self.held_out.name
        )
        del document["schema_version"]
        return {**document, "baselines": rules}

    def _difference_as_json(self, baseline: BaselineComparison) -> dict[str, Any]:
        comparison = baseline.comparison
        margin = None if comparison.rewards is None else abs(comparison.rewards.margin.value)
        return {
            **comparison.as_json(),
            "same_tokens": baseline.same_tokens,
            "is_noise": {
                "accuracy": abs(comparison.accuracy.difference.value) <= self.noise.accuracy,
                "margin": None if margin is None else margin <= self.noise.margin,
            },
        }

    def _save_as_json(self, save: BaselineComparison) -> dict[str, Any]:
        return {
            "checkpoint": save.name,
            "accuracy": summarise(save.scores, self.target.recipe.loss).accuracy.as_json(),
            "difference": save.comparison.as_json(),
        }


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
        loss = first.target.recipe.loss
        same_rewards = Objective(loss).has_rewards_of(Objective(second.target.recipe.loss))
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
