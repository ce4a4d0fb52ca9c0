"""What a study searches: keys in their order, the values of each, and the learning rates that a range test finds."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from simpo_cli.errors import UserError
from simpo_cli.recipe.composition import ComposedRecipe, compose
from simpo_cli.recipe.fields import all_keys, section_of
from simpo_cli.recipe.schema import Recipe
from simpo_cli.recipe.tree import flat
from simpo_cli.recipe.validate import HABITS

RATE = "train.learning_rate"
RATIO = "loss.gamma_beta_ratio"
GAMMA = "loss.gamma"
BETA = "loss.beta"
RATIOS = (0.0, 0.1, 0.25, 0.5, 1.0)
BETAS = (2.0, 2.5, 5.0, 10.0)
"""The range that the authors use."""

SWEEP_STEPS = 40
_SEARCHED = ("loss", "train", "model")  # what stands elsewhere changes the pairs, or nothing that a model learns
_NOT_SEARCHED = (
    *("model.path", "model.revision", "train.tokens_per_microbatch", "train.num_epochs", "train.max_steps"),
    *("train.precision", "train.deterministic"),
)
_AUTHORS_RATE, _AUTHORS_PARAMETERS = 1e-6, 8e9
_SIZE_EXPONENT = 0.8  # 1e-6 at 8 B comes to 2.6e-5 at 135 M and 1.2e-3 at 1 M, near what such models take
FOR_ADAPTERS = 10.0
_SMOOTHING = 0.8  # of the losses of a range test: what stays of the mean of the steps before
_TRIED = (3.0, 1.0, 1 / 3, 1 / 9)  # of the rate that a range test finds, which is that of one draw of pairs
NUM_RATES = len(_TRIED)
"""Tried after a range test."""
_AROUND = 1.7  # from the best rate to those that are tried last, about half of the way to the next


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        rates: learning rates to try; None has a range test find them; empty leaves the rate as it is.
        others: the values of each other key, in the order of the search.
        current: what the recipe says of every key that is searched.
    """

    rates: tuple[float, ...] | None
    others: Mapping[str, tuple[Any, ...]]
    current: Mapping[str, Any]

    @property
    def corners(self) -> list[dict[str, Any]]:
        """Objectives at the two ends of the authors' set-ups, to begin from where the recipe's own is far from good.

        A small margin on rewards that saturate early, and a large one on rewards that do not.
        """
        if RATIO not in self.others or BETA not in self.others:
            return []
        ratios, betas = sorted(self.others[RATIO]), sorted(self.others[BETA])
        low, high = ratios[min(1, len(ratios) - 1)], ratios[max(0, len(ratios) - 2)]
        return [{RATIO: low, BETA: betas[-1]}, {RATIO: high, BETA: betas[0]}]


def recipe_with(composed: ComposedRecipe, overrides: Sequence[str], values: Mapping[str, Any]) -> ComposedRecipe:
    """The recipe with some values replaced, as a person would type them.

    Args:
        overrides: with which it was composed.
    """
    return compose(composed.name, [*overrides, *(f"{key}={json.dumps(value)}" for key, value in values.items())])


@contextmanager
def said_of(key: str, value: Any) -> Iterator[None]:
    """A block that tries one value; a refusal names it."""
    try:
        yield
    except UserError as error:
        problem = f"tune.space.{key} has the value {json.dumps(value)}: {error.problem}"
        raise UserError(problem, error.fix, key=f"tune.space.{key}", exit_code=error.exit_code) from error


def space_of(composed: ComposedRecipe, overrides: Sequence[str]) -> Space:
    """The space that a recipe names, or the usual one: rates by a range test, then gamma/beta, then beta.

    Raises:
        UserError: a key is none, or is not one to search; a value is refused; nothing is to be tried.
    """
    named = composed.recipe.tune.space
    if named is None:
        return _space(composed.recipe, None, {RATIO: RATIOS, BETA: BETAS})
    if not named:
        raise UserError(
            "tune.space is empty: there is nothing to try.",
            "Leave it out for the usual keys, or name values: tune.space.loss.beta=[2,5,10]",
            key="tune.space",
        )
    found: dict[str, tuple[Any, ...]] = {}
    for key, listed in flat(named).items():
        found[key] = _values_of(key, listed)
        for value in found[key]:
            with said_of(key, value):
                recipe_with(composed, overrides, {key: value})
    if {RATIO, GAMMA} <= found.keys():
        fix = "Keep one: gamma is gamma_beta_ratio times beta."
        raise UserError(f"tune.space has both {RATIO} and {GAMMA}, which say one thing.", fix, key="tune.space")
    rates = found.pop(RATE, ())
    first = [key for key in (RATIO, BETA) if key in found]
    others = {key: found[key] for key in [*first, *(key for key in found if key not in first)]}
    return _space(composed.recipe, rates, others)


def _space(recipe: Recipe, rates: tuple[float, ...] | None, others: Mapping[str, tuple[Any, ...]]) -> Space:
    values = flat(asdict(recipe)) | {RATIO: recipe.loss.margin_beta_ratio, GAMMA: recipe.loss.margin}
    for key in others:
        if key not in values:
            section = key.rpartition(".")[0]
            fix = f"Add {section}={{}}, or leave the key out."
            raise UserError(f"tune.space.{key}: the recipe has no {section}.", fix, key=f"tune.space.{key}")
    return Space(rates, others, {key: values[key] for key in [*([] if rates == () else [RATE]), *others]})


def _values_of(key: str, listed: Any) -> tuple[Any, ...]:
    """The values that are listed for a key of a recipe."""
    at = f"tune.space.{key}"
    schema = all_keys().get(key)
    if schema is None:
        meant = HABITS.get(key.rpartition(".")[2], ("", ""))[0] or _near(key)
        fix = f"Did you mean {meant}?" if meant else "simpo recipe schema lists the keys."
        raise UserError(f"{at}: {key} is not a key of a recipe.", fix, key=at)
    if section_of(schema) is not None or key.split(".")[0] not in _SEARCHED or key in _NOT_SEARCHED:
        fix = "Search keys of loss, of train such as learning_rate, or of model.lora."
        raise UserError(f"{at}: {key} cannot be searched.", fix, key=at)
    if not isinstance(listed, list) or not listed or any(isinstance(one, list | dict) for one in listed):
        problem = f"{at} is {json.dumps(listed)}, and a list of values is wanted."
        raise UserError(problem, f"Write it as {at}=[VALUE,VALUE].", key=at)
    return tuple(dict.fromkeys(listed))


def _near(key: str) -> str:
    from difflib import get_close_matches

    return next(iter(get_close_matches(key, all_keys(), n=1)), "")


def usual_rate(num_parameters: int, *, adapters: bool) -> float:
    """What models of a size take: 1e-6 at 8 B parameters, as the authors have it, more for smaller ones; for adapters
    ten times that.
    """
    usual: float = _AUTHORS_RATE * (_AUTHORS_PARAMETERS / num_parameters) ** _SIZE_EXPONENT
    return usual * FOR_ADAPTERS if adapters else usual


def sweep_rates(recipe: Recipe, num_parameters: int) -> list[float]:
    """The rates of a range test, one a step and rising evenly on a log scale.

    They go from a hundredth to ten times of what models of such a size take.
    """
    usual = usual_rate(num_parameters, adapters=recipe.model.lora is not None)
    rates: list[float] = np.geomspace(usual / 100, usual * 10, SWEEP_STEPS).tolist()
    return rates


def rates_from(rates: Sequence[float], losses: Sequence[float]) -> list[float]:
    """The learning rates to try: around the one at which the smoothed loss of a range test was lowest, mostly below it.

    A test that raises the rate at every step overestimates it, since most of its steps were taken at lower ones
    (Smith 2017, arXiv:1506.01186). With other seeds the lowest place was up to three times higher or lower.

    Args:
        losses: as many as steps were taken, the first before any.
    """
    smoothed, mean, weight = [], 0.0, 0.0
    for loss in losses:
        mean, weight = _SMOOTHING * mean + (1 - _SMOOTHING) * loss, _SMOOTHING * weight + 1 - _SMOOTHING
        smoothed.append(mean / weight)
    # the loss of a step is that of the rates before it; the first steps are few to judge by
    lowest = int(np.argmin(smoothed[1:])) + 1 if len(smoothed) > 1 else 0
    highest = rates[max(lowest - 1, 0)]
    return [_two_digits(highest * factor) for factor in _TRIED]


def rates_around(rate: float) -> list[float]:
    """A rate a little above, and one a little below."""
    return [_two_digits(rate * _AROUND), _two_digits(rate / _AROUND)]


def rate_beyond(rate: float, next_rate: float) -> float:
    """The rate that is as far beyond the next one as that is beyond the first."""
    return _two_digits(next_rate * next_rate / rate)


def _two_digits(rate: float) -> float:
    return float(f"{rate:.2g}")
