"""Sections of a recipe that one command alone reads: `simpo pairs round` and `simpo tune`."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic.dataclasses import dataclass

from simpo_cli.recipe.values import STRICT, FieldError, Path, checked


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PairsRecipe:
    """How `simpo pairs round`, which alone reads this, gets its pairs: the model's own answers; docs/on-policy.md."""

    prompts: Annotated[Path | None, checked("Name a file of prompts, or builtin:guide.")] = None
    """A file of prompts, JSON or JSON lines, or `builtin:guide`; the pairs of a round take the place of data.train."""
    of_pairs: bool = False
    """`prompts` is a file of pairs, whose prompts are asked."""
    prompts_per_round: Annotated[int, checked("Some hundreds at least.", ge=1)] = 1000
    """Prompts that a round asks: others in each round, and from the beginning when all have been asked."""
    answers_per_prompt: Annotated[int, checked("5 is usual; a pair needs 2.", ge=2)] = 5
    """Answers sampled for each prompt."""
    temperature: Annotated[float, checked("0.8 is usual.", gt=0, le=10)] = 0.8
    """Divides the logits of sampled answers."""
    max_new_tokens: Annotated[int | None, checked("Use null for 512, or what fits.", ge=1)] = None
    """Most tokens of an answer; null is 512, or what there is room for."""
    rejected: Literal["worst", "low"] = "worst"
    """Which answer the best one is set against: the worst, or the one nearest to the mean less two deviations."""
    min_margin: Annotated[float, checked("0 keeps all but ties.", ge=0)] = 0.0
    """The two scores must differ by more than this."""
    min_score: float | None = None
    """The chosen answer must score this much; null asks nothing, so that the less bad of two bad answers is chosen."""
    match_lengths: bool = False
    """Leave out pairs until the chosen answer is as often the longer one as it is the shorter one."""
    rate_factor: Annotated[float, checked("1 keeps the rate; 0.5 halves it.", gt=0, le=1)] = 1.0
    """Each round's train.learning_rate is that of the round before times this: a better model needs smaller steps."""
    held_out_prompts: Annotated[int, checked("Fewer than 100 show large changes only.", ge=10)] = 300
    """Prompts that each round's model answers greedily and is judged by: of data.eval, or set aside from `prompts`."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BudgetRecipe:
    """What a search may take; the two retrainings that confirm its winner come on top and are announced."""

    steps: Annotated[int | None, checked("The trials of a search take thousands.", ge=1)] = None
    """Steps of all trials together; null follows from minutes, or else from the recipe's own steps."""
    minutes: Annotated[float | None, checked("60 is a beginning; null goes by steps.", gt=0)] = None
    """Time of all trials together on one device, from the speed that the first steps show."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.minutes is not None:
            raise FieldError("steps", "and minutes are both given", "Keep one of the two.", ("minutes",))


_Worse = Annotated[float, checked("It is a share of the answers, such as 0.05.", ge=0, le=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GuardsRecipe:
    """What a trial may not do to the model's greedy answers, whatever the pairs say of it."""

    endless: _Worse = 0.05
    """Share of the answers by which fewer may end than the start model's do."""
    repeating: _Worse = 0.05
    """Share of the answers by which more may repeat themselves than the start model's do."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TuneRecipe:
    """How `simpo tune`, which alone reads this, looks for better numbers; docs/tuning.md."""

    space: dict[str, Any] | None = None
    """Values to try of each key, in the sections of the recipe, such as `{loss: {beta: [2, 5, 10]}}`; null follows
    from the model: learning rates, then gamma/beta, then beta."""
    budget: BudgetRecipe = field(default_factory=BudgetRecipe)
    """What the search may take."""
    guards: GuardsRecipe = field(default_factory=GuardsRecipe)
    """What a trial may not do to the model's answers."""
    answers: Annotated[int, checked("64 tell large differences apart.", ge=30)] = 128
    """Prompts of each half of the held-out pairs that every trial's model answers greedily."""
    seeds: Annotated[int, checked("3 show some of what a seed does.", ge=2, le=20)] = 3
    """Seeds with which the winner and the recipe as it is are trained again, none of them the search's."""
