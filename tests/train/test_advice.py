"""What a run suggests at its end: overrides to paste, only after alerts for which trials have shown that they help."""

import pytest

from simpo_cli.recipe.composition import compose
from simpo_cli.train.advice import suggestions
from simpo_cli.train.health import WATCHES

RECIPE = compose("demo", ["train.learning_rate=9e-4", "loss.sft_weight=0.1"]).recipe


@pytest.mark.parametrize("codes", [["HEA002"], ["HEA007"], ["HEA001", "HEA008"], ["HEA001"]])
def test_where_answers_or_chosen_responses_fall(codes: list[str]) -> None:
    found = suggestions(RECIPE, codes)
    assert [one.overrides for one in found] == [("loss.sft_weight=1",), ("train.learning_rate=0.0003",)]
    assert all(one.why.startswith(f"{', '.join(codes)}: ") for one in found)
    for one in found:
        compose("demo", one.overrides)  # they can be pasted


def test_what_the_recipe_has_already_is_not_suggested() -> None:
    recipe = compose("demo", ["train.learning_rate=9e-4", "loss.sft_weight=1"]).recipe
    assert [one.overrides for one in suggestions(recipe, ["HEA001"])] == [("train.learning_rate=0.0003",)]


@pytest.mark.parametrize("codes", [[], ["HEA003"], ["HEA004"], ["HEA005", "HEA006"]])
def test_nothing_without_evidence(codes: list[str]) -> None:
    assert suggestions(RECIPE, codes) == []
    assert set(codes) <= WATCHES.keys()
