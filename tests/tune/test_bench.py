"""Trials that share a start: each is what it would be by itself, and what `simpo train` would do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from simpo_cli.model.policy import trainable
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import Recipe
from simpo_cli.run.events import Unwatched
from simpo_cli.run.stop import StopRequest
from simpo_cli.tune.bench import Bench, Trained
from tests.train.runs import Memory, Runs
from tests.tune.small import write_recipe


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    return write_recipe(tmp_path_factory.mktemp("bench"), tiny_folder)


def recipe_of(file: Path, *overrides: str) -> Recipe:
    return compose(str(file), overrides).recipe


def bench_of(recipe: Recipe, scratch: Path) -> Bench:
    return Bench(recipe, scratch, 8, Unwatched(), StopRequest())


@pytest.fixture(params=["whole", "adapters"])
def bench(request: pytest.FixtureRequest, file: Path, tmp_path: Path) -> tuple[Bench, Recipe]:
    recipe = recipe_of(file, *(["model.lora={}"] if request.param == "adapters" else []))
    return bench_of(recipe, tmp_path), recipe


def same(one: Trained, other: Trained) -> bool:
    assert one.scores is not None
    assert other.scores is not None
    equal = [
        np.array_equal(a, b)
        for a, b in ((one.scores.chosen, other.scores.chosen), (one.scores.rejected, other.scores.rejected))
    ]
    return all(equal) and one.answers == other.answers


def test_a_trial_is_the_same_whatever_was_tried_before(bench: tuple[Bench, Recipe], tmp_path: Path) -> None:
    shared, recipe = bench
    first = shared.train(recipe, 5, "choosing")
    wild = replace(recipe, train=replace(recipe.train, learning_rate=0.5))
    assert not same(shared.train(wild, 3, "choosing"), first)
    shared.sweep(recipe, [1e-4, 1e-3, 1e-2])
    assert same(shared.train(recipe, 5, "choosing"), first)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    assert same(bench_of(recipe, fresh).train(recipe, 5, "choosing"), first)


def test_a_trial_that_ends_on_numbers_says_so_and_harms_no_other(bench: tuple[Bench, Recipe]) -> None:
    shared, recipe = bench
    first = shared.train(recipe, 3, "choosing")
    lost = shared.train(replace(recipe, train=replace(recipe.train, learning_rate=1e30)), 5, "choosing")
    assert lost.scores is None
    assert "not finite" in lost.problem
    assert same(shared.train(recipe, 3, "choosing"), first)


def test_the_start_is_scored_as_it_was_loaded(bench: tuple[Bench, Recipe]) -> None:
    shared, recipe = bench
    start = shared.start("confirming")
    shared.train(recipe, 2, "choosing")
    assert same(shared.start("confirming"), start)
    assert not same(shared.start("choosing"), start)


def test_a_trial_takes_the_steps_of_a_run(file: Path, tmp_path: Path) -> None:
    """Of as many steps: the same losses to the bit, the same weights."""
    recipe = recipe_of(file)
    watched = Memory()
    shared = bench_of(recipe, tmp_path)
    shared.train(recipe, 6, "choosing", watched)
    runs = Runs(tmp_path, file.read_text(encoding="utf-8"), "train.max_steps=6", "eval.part=choosing")
    told = runs.train("run")
    assert [record.loss for record in watched.steps] == [record.loss for record in told.steps]
    assert [record.learning_rate for record in watched.steps] == [record.learning_rate for record in told.steps]
    saved = runs.weights("run")
    for name, weight in trainable(shared._training.policy).items():
        assert torch.equal(weight, saved[name]), name


def test_what_is_read_and_loaded_decides_which_trials_a_bench_serves(file: Path, tmp_path: Path) -> None:
    recipe = recipe_of(file)
    shared = bench_of(recipe, tmp_path)
    for override in ("loss.beta=9", "train.learning_rate=1e-6", "train.lr_scheduler=linear", "seed=7", "name=other"):
        assert shared.serves(recipe_of(file, override)), override
    for override in ("model.lora={}", "data.max_length=56", "train.pairs_per_step=8", "train.optimizer=adamw_8bit"):
        assert not shared.serves(recipe_of(file, override)), override
    adapters = recipe_of(file, "model.lora={}")
    assert not bench_of(adapters, tmp_path).serves(replace(adapters, seed=7))  # they begin with the seed


def test_both_halves_are_all_that_is_held_out(file: Path, tmp_path: Path) -> None:
    shared = bench_of(recipe_of(file), tmp_path)
    halves = [{pair.prompt_key for pair in shared.pairs(part)} for part in ("choosing", "confirming")]
    assert len(halves[0] | halves[1]) == 90
    assert not halves[0] & halves[1]
    assert [len(shared.prompts(part)) for part in ("choosing", "confirming")] == [8, 8]
