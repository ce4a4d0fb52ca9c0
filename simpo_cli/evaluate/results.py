"""The results of `simpo eval`: of each model, of each two on the pairs that both have, and of runs that differ only by
their seed. The JSON document is their serialisation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any

from simpo_cli.errors import UserError
from simpo_cli.evaluate.held_out import HeldOut
from simpo_cli.evaluate.metrics import (
    SCHEMA_VERSION,
    EvalSummary,
    ModelComparison,
    PairScores,
    Slice,
    align,
    compare_scores,
    summarise,
)
from simpo_cli.evaluate.scoring import Noise
from simpo_cli.evaluate.targets import Target
from simpo_cli.objective import Objective
from simpo_cli.recipe.schema import TrackingRecipe
from simpo_cli.recipe.tree import differences
from simpo_cli.statistics import Measured, as_json, holm, over_seeds


@dataclass(frozen=True)
class BaselineComparison:
    """A model less the baseline of this name, whose scores are of the same pairs in the same order."""

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
        texts = {name: getattr(self.error, name) for name in ("problem", "fix", "where")}
        return {"model": self.model, **texts, "exit_code": int(self.error.exit_code)}


@dataclass(frozen=True)
class Evaluation:
    """One model and what was measured of it.

    Attributes:
        scores: of the held-out pairs, as the saved model gives them.
        packing: how pairs went through the model, with the self-check's evidence.
        noise: of the baseline's scores, or of its own where there are none.
        baseline: the model that it is compared with.
        not_compared: what it was to be compared with, and why it is not.
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

    @cached_property
    def summary(self) -> EvalSummary:
        """The model's own numbers."""
        return self._summary_of(self.scores)

    def _summary_of(self, scores: PairScores) -> EvalSummary:
        return summarise(scores, self.target.recipe.loss, self.surface)

    def as_json(self) -> dict[str, Any]:
        """The document of `simpo eval --json` for one model."""
        loss, data = self.target.recipe.loss, self.held_out.name
        baseline, save = self.baseline, self.save
        document: dict[str, Any] = {
            **self.summary.as_json(model=self.target.name, data=data),
            "objective": {"type": loss.type, "beta": loss.beta, "gamma": loss.margin},
            "packing": self.packing,
            "token_cache": self.held_out.cache,
            "noise": as_json(self.noise),
            "baseline": None,
            "difference": None,
            "not_compared": self.not_compared and self.not_compared.as_json(),
            "save": None,
            "slices": as_json(self.slices),
        }
        if baseline is not None:
            document["baseline"] = self._summary_of(baseline.scores).as_json(model=baseline.name, data=data)
            del document["baseline"]["schema_version"]
            known = {"same_tokens": baseline.same_tokens, "is_noise": self.noise.explains(baseline.comparison)}
            document["difference"] = as_json(baseline.comparison) | known
        if save is not None:
            document["save"] = {
                "checkpoint": save.name,
                "accuracy": self._summary_of(save.scores).accuracy.as_json(),
                "difference": as_json(save.comparison),
            }
        return document


def document_of(evaluations: Sequence[Evaluation], failed: Sequence[Failure], *, is_one: bool) -> dict[str, Any]:
    """The document of `simpo eval --json`; where one model was named, that of this model is the whole."""
    documents = [one.as_json() for one in evaluations]
    comparisons = [_compared(*two) for two in combinations(evaluations, 2)]
    tests = [one["difference"] for one in (*documents, *comparisons) if one["difference"] is not None]
    for test, p_value in zip(tests, holm([test["p_value"] for test in tests]), strict=True):
        test["p_value_holm"] = p_value
    if is_one:
        return documents[0]
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluations": documents,
        "comparisons": comparisons,
        "seeds": _over_seeds(evaluations),
        "failed": [failure.as_json() for failure in failed],
    }


def _compared(first: Evaluation, second: Evaluation) -> dict[str, Any]:
    """The second less the first, on the pairs that both have."""
    shared, same_tokens = align(first.held_out.pairs, second.held_out.pairs)
    ours, theirs = first.target.of_run, second.target.of_run
    recipes = None
    if ours is not None and theirs is not None:
        changed = differences(ours, theirs, items=True)
        recipes = [{"key": key, "values": list(values)} for key, values in changed.items()]
    compared: dict[str, Any] = {
        "models": [first.target.name, second.target.name],
        "pairs": len(shared.positions),
        "swapped": shared.swapped,
        "recipes": recipes,
        "difference": None,
    }
    if shared.positions:
        ours_at, theirs_at = zip(*shared.positions, strict=True)
        loss = first.target.recipe.loss
        same_rewards = Objective(loss).has_rewards_of(Objective(second.target.recipe.loss))
        comparison = compare_scores(
            first.scores.select(ours_at),
            second.scores.select(theirs_at),
            loss if same_tokens and same_rewards else None,
        )
        known = {"same_tokens": same_tokens, "same_rewards": same_rewards}
        compared["difference"] = as_json(comparison) | known
    return compared


_OVER_SEEDS: dict[str, Callable[[Evaluation], Measured | None]] = {
    "accuracy": lambda one: one.summary.accuracy,
    "length_balanced": lambda one: one.summary.length["balanced"],
    "margin": lambda one: one.summary.margin,
    "loss": lambda one: one.summary.loss,
    "difference": lambda one: None if one.baseline is None else one.baseline.comparison.accuracy,
    "length_balanced_difference": lambda one: None if one.baseline is None else one.baseline.comparison.length_balanced,
}


def _over_seeds(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Means over finished runs of one recipe with at least two seeds on the same pairs, with t intervals by run."""
    groups: dict[tuple[Any, ...], list[tuple[int, Evaluation]]] = {}
    for one in evaluations:
        recipe = one.target.of_run
        if recipe is not None and one.target.checkpoint is None:
            plain = replace(recipe, name="any", output_dir="any", seed=0, tracking=TrackingRecipe())
            groups.setdefault((repr(plain), one.held_out.key), []).append((recipe.seed, one))
    documents = []
    for group in groups.values():
        seeds, runs = [seed for seed, _ in group], [one for _, one in group]
        if not len(set(seeds)) == len(seeds) > 1:
            continue
        means = {}
        for name, measure in _OVER_SEEDS.items():
            measured = [found for one in runs if (found := measure(one)) is not None]
            mean = over_seeds([one.value for one in measured]) if len(measured) == len(runs) else None
            if mean is not None and name in ("accuracy", "length_balanced"):  # shares, whatever a t interval says
                mean = replace(mean, low=max(0.0, mean.low), high=min(1.0, mean.high))
            means[name] = mean
        documents.append({"models": [one.target.name for one in runs], "seeds": seeds, **as_json(means)})
    return documents
