"""Which keys and values a study searches, and which learning rates a range test leaves."""

from dataclasses import replace

import numpy as np
import pytest

from simpo_cli.errors import UserError
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import LoraRecipe
from simpo_cli.tune.space import (
    BETA,
    BETAS,
    RATE,
    RATIO,
    RATIOS,
    rates_around,
    rates_from,
    recipe_with,
    space_of,
    sweep_rates,
)


def test_the_usual_space_is_in_the_authors_order() -> None:
    space = space_of(compose("demo"), ())
    assert space.rates is None
    assert list(space.others.items()) == [(RATIO, RATIOS), (BETA, BETAS)]
    assert space.current == {RATE: 7e-4, RATIO: 0.1, BETA: 10.0}


def test_a_gamma_is_searched_as_its_ratio() -> None:
    assert space_of(compose("demo", ["loss.gamma=3"]), ()).current[RATIO] == pytest.approx(0.3)


def test_any_key_of_loss_train_and_model_can_be_searched() -> None:
    given = [
        "tune.space.train.lr_scheduler=[cosine,linear]",
        "tune.space.model.lora.rank=[8,16]",
        "tune.space.loss.beta=[3]",
        "tune.space.train.learning_rate=[1e-4,2e-4]",
        "model.lora={}",
    ]
    space = space_of(compose("demo", given), given)
    assert space.rates == (1e-4, 2e-4)
    assert dict(space.others) == {BETA: (3,), "train.lr_scheduler": ("cosine", "linear"), "model.lora.rank": (8, 16)}
    assert next(iter(space.others)) == BETA  # whatever the recipe's order
    assert space.current["model.lora.rank"] == 16


REFUSED = {
    "tune.space={}": ("tune.space is empty", "Leave it out"),
    "tune.space.loss.bata=[1]": ("loss.bata is not a key of a recipe", "Did you mean loss.beta?"),
    "tune.space.train.lr=[1]": ("train.lr is not a key of a recipe", "Did you mean train.learning_rate?"),
    "tune.space.loss.beta=[]": ("is [], and a list of values is wanted", "[VALUE,VALUE]"),
    "tune.space.loss.beta=5": ("is 5, and a list of values is wanted", "[VALUE,VALUE]"),
    "tune.space.loss.beta=[[2]]": ("a list of values is wanted", "[VALUE,VALUE]"),
    "tune.space.loss.beta=[-1]": ("has the value -1: loss.beta is -1.0, must be above 0", "The authors use 2 to 10."),
    "tune.space.loss.label_smoothing=[0.7]": ("has the value 0.7", ""),
    "tune.space.data.max_length=[128]": ("data.max_length cannot be searched", "loss"),
    "tune.space.model.path=[builtin:guide]": ("model.path cannot be searched", "loss"),
    "tune.space.model.lora.rank=[8]": ("the recipe has no model.lora", "Add model.lora={}"),
    "tune.space.loss={gamma:[1],gamma_beta_ratio:[0.1]}": ("which say one thing", "Keep one"),
    "tune.space.seed=[1]": ("seed cannot be searched", "loss"),
    "tune.space.loss=[1]": ("loss cannot be searched", "loss"),
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_is_no_space_is_refused_in_a_sentence(override: str) -> None:
    with pytest.raises(UserError) as refused:
        space_of(compose("demo", [override]), [override])
    problem, fix = REFUSED[override]
    assert problem in refused.value.problem
    assert fix in refused.value.fix
    assert refused.value.key.startswith("tune.space")


def test_values_are_put_in_as_typed_and_the_rest_stays() -> None:
    given = ["loss.gamma=1", "name=x"]
    changed = recipe_with(compose("demo", given), given, {RATIO: 0.25, RATE: 1e-5}).recipe
    assert (changed.loss.gamma, changed.loss.gamma_beta_ratio, changed.train.learning_rate) == (None, 0.25, 1e-5)
    assert (changed.name, changed.loss.beta) == ("x", 10.0)


def test_a_range_test_goes_around_what_models_of_a_size_take() -> None:
    recipe = compose("demo").recipe
    large, small = (sweep_rates(recipe, size) for size in (8_000_000_000, 1_000_000))
    assert large[0] < 3e-7 < 1e-6 < large[-1]
    assert small[0] < 1e-4 < 1e-3 < small[-1]
    adapters = replace(recipe, model=replace(recipe.model, lora=LoraRecipe()))
    assert sweep_rates(adapters, 8_000_000_000) == pytest.approx([10 * rate for rate in large])
    assert np.ptp(np.diff(np.log(large))) < 1e-9


def test_rates_are_around_the_one_where_the_loss_was_lowest() -> None:
    rates = np.geomspace(1e-5, 1e-2, 40).tolist()
    losses = [1.0 - 0.01 * step for step in range(25)] + [0.75 + 0.2 * step for step in range(15)]
    tried = rates_from(rates, losses)
    assert rates[20] <= tried[1] <= rates[27]
    assert tried == pytest.approx([tried[1] * factor for factor in (3, 1, 1 / 3, 1 / 9)], rel=0.05)


def test_a_range_test_that_ended_on_numbers_goes_by_what_was_before() -> None:
    rates = np.geomspace(1e-5, 1e-2, 40).tolist()
    assert rates_from(rates, [1.0, 0.9, 0.8])[1] <= rates[2]
    assert rates_from(rates, [1.0])[1] == pytest.approx(rates[0], rel=0.05)


def test_the_last_rates_are_a_little_above_and_below() -> None:
    assert rates_around(1e-3) == [1.7e-3, 5.9e-4]


def test_corners_are_the_two_ends_of_the_authors_set_ups() -> None:
    assert space_of(compose("demo"), ()).corners == [{RATIO: 0.1, BETA: 10.0}, {RATIO: 0.5, BETA: 2.0}]


def test_without_both_keys_there_are_no_corners() -> None:
    given = ["tune.space.loss.beta=[2,5]"]
    assert space_of(compose("demo", given), given).corners == []
