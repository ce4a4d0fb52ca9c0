"""Every code that a run watches for. A code never changes its meaning; scripts and `health.stop_on` go by it."""

from dataclasses import dataclass

from simpo_cli.recipe.schema import HealthRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """One thing that a run is watched for.

    Attributes:
        code: three letters and three digits.
        key: the threshold in `health`.
        remedy: what to do, in the end of a sentence, without its full stop.
        is_least: the threshold is the least healthy value; otherwise it is the first unhealthy one.
    """

    code: str
    key: str
    remedy: str
    is_least: bool = False

    def limit(self, recipe: HealthRecipe) -> float | None:
        """The recipe's threshold; None where the watch is off."""
        value: float | None = getattr(recipe, self.key)
        return value

    def is_beyond(self, value: float, recipe: HealthRecipe) -> bool:
        """Whether a reading is unhealthy."""
        limit = self.limit(recipe)
        return limit is not None and (value <= limit if self.is_least else value >= limit)


CHOSEN_FALLS = Watch(
    code="HEA001",
    key="chosen_fall",
    remedy="try loss.sft_weight=0.1 or a lower loss.gamma_beta_ratio",
)
BOTH_FALL = Watch(
    code="HEA002",
    key="both_fall",
    remedy="lower train.learning_rate",
)
SATURATED = Watch(
    code="HEA003",
    key="gradient_weight",
    remedy="a shorter run or a higher loss.gamma_beta_ratio",
    is_least=True,
)
GRADIENT_SPIKE = Watch(
    code="HEA004",
    key="gradient_spike",
    remedy="if more follow, lower train.learning_rate or raise train.pairs_per_step",
)
UPDATES_LOST = Watch(
    code="HEA005",
    key="lost_updates",
    remedy="set model.weights_dtype=fp32",
)
CHANGE_LOST = Watch(
    code="HEA006",
    key="kept_change",
    remedy="set export.dtype=fp32, which keeps all of it",
    is_least=True,
)
ANSWERS_LOOP = Watch(
    code="HEA007",
    key="looping_answers",
    remedy="lower train.learning_rate, or try loss.sft_weight=0.1",
)
ANSWERS_ENDLESS = Watch(
    code="HEA008",
    key="endless_answers",
    remedy="lower train.learning_rate, or try loss.sft_weight=0.1",
)

WATCHES = {
    watch.code: watch
    for watch in (
        CHOSEN_FALLS,
        BOTH_FALL,
        SATURATED,
        GRADIENT_SPIKE,
        UPDATES_LOST,
        CHANGE_LOST,
        ANSWERS_LOOP,
        ANSWERS_ENDLESS,
    )
}
