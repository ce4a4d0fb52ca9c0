"""Token log-probs and the loss of single pairs, against one sequence at a time and plain arithmetic."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from simpo_cli.evaluate.scoring import OpenModel, open_model, score_tokens
from simpo_cli.model.load import find_model
from simpo_cli.recipe.schema import DataRecipe, LossRecipe, ModelRecipe, Recipe, TrainRecipe
from tests.model.reference import response_logps
from tests.pairs import random_pairs
from tests.tiny import save_tiny_model

PAIRS = random_pairs(4, seed=5)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def opened(folder: Path) -> OpenModel:
    recipe = Recipe(
        name="r",
        model=ModelRecipe(path=str(folder)),
        data=DataRecipe(train="-"),
        train=TrainRecipe(precision="fp32"),
    )
    return open_model(recipe, find_model(str(folder)), PAIRS)


LOSSES: list[tuple[LossRecipe, Callable[[float, float], float]]] = [
    (LossRecipe(gamma=0.3), lambda d, _: -math.log(sigmoid(d))),
    (LossRecipe(beta=5, gamma_beta_ratio=0.1, type="hinge"), lambda d, _: max(0.0, 1 - d)),
    (
        LossRecipe(gamma=0.3, label_smoothing=0.2, sft_weight=0.5),
        lambda d, m: -0.8 * math.log(sigmoid(d)) - 0.2 * math.log(sigmoid(-d)) - 0.5 * m,
    ),
]


@pytest.mark.parametrize(("loss", "formula"), LOSSES)
def test_every_number_is_that_of_single_sequences(
    folder: Path, opened: OpenModel, loss: LossRecipe, formula: Callable[[float, float], float]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    for pair, scores in zip(PAIRS, score_tokens(opened, PAIRS, loss), strict=True):
        with torch.no_grad():
            chosen = response_logps(model, pair.prompt.tolist(), pair.chosen.tolist()).tolist()
            rejected = response_logps(model, pair.prompt.tolist(), pair.rejected.tolist()).tolist()
        assert scores["chosen"]["logps"] == pytest.approx(chosen, abs=1e-4)
        assert scores["rejected"]["logps"] == pytest.approx(rejected, abs=1e-4)
        assert scores["chosen"]["logp_sum"] == pytest.approx(sum(chosen), abs=1e-3)
        m_chosen, m_rejected = sum(chosen) / len(chosen), sum(rejected) / len(rejected)
        assert (scores["chosen"]["logp_mean"], scores["rejected"]["logp_mean"]) == pytest.approx(
            (m_chosen, m_rejected), abs=1e-4
        )
        assert scores["chosen"]["reward"] == pytest.approx(loss.beta * m_chosen, abs=1e-3)
        margin = loss.beta * (m_chosen - m_rejected)
        assert scores["margin"] == pytest.approx(margin, abs=1e-3)
        assert scores["loss"] == pytest.approx(formula(margin - loss.margin, m_chosen), abs=1e-3)


def test_they_are_those_of_the_scores_that_training_and_eval_take(opened: OpenModel) -> None:
    packed_together = opened.score(PAIRS, "tiny")
    alone = score_tokens(opened, PAIRS, LossRecipe())
    assert [one["chosen"]["logp_mean"] for one in alone] == pytest.approx(packed_together.chosen.tolist(), abs=1e-5)
    assert [one["rejected"]["logp_mean"] for one in alone] == pytest.approx(packed_together.rejected.tolist(), abs=1e-5)


def test_the_model_is_left_without_gradients(opened: OpenModel) -> None:
    assert not any(parameter.requires_grad for parameter in opened.policy.parameters())
