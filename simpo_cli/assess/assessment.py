"""What `simpo eval` finds out, before it is a document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simpo_cli.assess.held_out import HeldOut
from simpo_cli.assess.targets import Target
from simpo_cli.errors import UserError
from simpo_cli.evaluate.comparison import ModelComparison
from simpo_cli.evaluate.noise import Noise
from simpo_cli.evaluate.score import PairScores
from simpo_cli.evaluate.slices import Slice
from simpo_cli.evaluate.summary import summarise
from simpo_cli.statistics import Measured


@dataclass(frozen=True)
class Against:
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
    baseline: Against | None = None
    not_compared: Failure | None = None
    save: Against | None = None
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

    def _baseline_as_json(self, baseline: Against, rules: Mapping[str, Any]) -> dict[str, Any]:
        document = summarise(baseline.scores, self.target.recipe.loss).as_json(
            model=baseline.name, data=self.held_out.name
        )
        del document["schema_version"]
        return {**document, "baselines": rules}

    def _difference_as_json(self, baseline: Against) -> dict[str, Any]:
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

    def _save_as_json(self, save: Against) -> dict[str, Any]:
        return {
            "checkpoint": save.name,
            "accuracy": summarise(save.scores, self.target.recipe.loss).accuracy.as_json(),
            "difference": save.comparison.as_json(),
        }
