"""What to change of a recipe after a run: overrides to paste, each with its reason, only where trials have shown it.

Settings whose runs would have raised an alert were trained again with the change that is suggested here, and what their
answers were worth was compared: docs/tuning.md has the counts. A higher rate for a run that hardly moved is not among
them: it did more harm than good.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from simpo_cli.recipe.schema import Recipe
from simpo_cli.train.health import ANSWERS_ENDLESS, ANSWERS_LOOP, BOTH_FALL, CHOSEN_FALLS

_FALLEN = {watch.code for watch in (CHOSEN_FALLS, BOTH_FALL, ANSWERS_LOOP, ANSWERS_ENDLESS)}
_SFT_WEIGHT = 1  # that was tried
_WHERE = "helped most such trials (docs/tuning.md)"


class Suggestion(NamedTuple):
    """Overrides as they are typed, and why."""

    overrides: tuple[str, ...]
    why: str

    def as_json(self) -> dict[str, Any]:
        """As run.json has it."""
        return {"overrides": list(self.overrides), "why": self.why}


def suggestions(recipe: Recipe, codes: Collection[str]) -> list[Suggestion]:
    """What to change after a run with these alerts, the first one first; mostly nothing."""
    seen = ", ".join(sorted(_FALLEN & set(codes)))
    if not seen:
        return []
    rate = float(f"{recipe.train.learning_rate / 3:.2g}")
    found = [Suggestion((f"train.learning_rate={rate}",), f"{seen}: a third of the rate {_WHERE}")]
    if recipe.loss.sft_weight < _SFT_WEIGHT:
        why = f"{seen}: the likelihood of the chosen responses {_WHERE}"
        found.insert(0, Suggestion((f"loss.sft_weight={_SFT_WEIGHT}",), why))
    return found
