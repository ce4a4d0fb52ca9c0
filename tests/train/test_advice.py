"""What a run suggests at its end: overrides to paste, only after alerts for which trials have shown that they help."""

import pytest

from simpo_cli.recipe.composition import compose
from simpo_cli.train.advice import suggestions
from simpo_cli.train.health import WATCHES

RECIPE = compose("demo", ["train.learning_rate=9e-4"]).recipe


@pytest.mark.parametrize("codes", [["HEA002"], ["HEA007"], ["HEA001", "HEA008"], ["HEA001"]])
def test_a_third_of_the_rate_where_answers_or_chosen_responses_fall(codes: list[str]) -> None:
    [one] = suggestions(RECIPE, codes)
    assert one.overrides == ("train.learning_rate=0.0003",)
    assert codes[-1] in one.why
    changed = compose("demo", ["train.learning_rate=9e-4", *one.overrides]).recipe
    assert changed.train.learning_rate == pytest.approx(RECIPE.train.learning_rate / 3)


@pytest.mark.parametrize("codes", [[], ["HEA003"], ["HEA004"], ["HEA005", "HEA006"]])
def test_nothing_without_evidence(codes: list[str]) -> None:
    assert suggestions(RECIPE, codes) == []
    assert set(codes) <= WATCHES.keys()
