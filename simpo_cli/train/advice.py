"""What to change of a recipe after a run: overrides to paste, each with its reason, only where trials have shown it.

Settings whose runs would have raised an alert were trained again with the change that it suggests, and what their
answers were worth was compared: docs/tuning.md has the counts. What did not help there is not suggested here.
"""

from collections.abc import Collection
from typing import NamedTuple

from simpo_cli.recipe.schema import Recipe
from simpo_cli.train.health import ANSWERS_ENDLESS, ANSWERS_LOOP, BOTH_FALL, CHOSEN_FALLS

_APART = {BOTH_FALL.code, ANSWERS_LOOP.code, ANSWERS_ENDLESS.code}


class Suggestion(NamedTuple):
    """Overrides as they are typed, and why."""

    overrides: tuple[str, ...]
    why: str


def suggestions(recipe: Recipe, codes: Collection[str]) -> list[Suggestion]:
    """What to change after a run with these alerts, the first one first; mostly nothing."""
    rate = f"train.learning_rate={float(f'{recipe.train.learning_rate / 3:.2g}')}"
    if found := sorted(_APART & set(codes)):
        return [Suggestion((rate,), f"{', '.join(found)}: a third of the rate helped most such trials")]
    if CHOSEN_FALLS.code in codes:
        return [Suggestion((rate,), f"{CHOSEN_FALLS.code}: a third of the rate helped most such trials")]
    return []
