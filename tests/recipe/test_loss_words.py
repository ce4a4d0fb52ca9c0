"""The objective in words."""

import pytest

from simpo_cli.recipe.schema import LossRecipe, loss_terms


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (LossRecipe(), "SimPO, sigmoid · beta 2 · gamma 1 (gamma/beta 0.5) · label smoothing off · SFT term off"),
        (
            LossRecipe(beta=10, gamma=3, label_smoothing=0.1, sft_weight=0.25),
            "SimPO, sigmoid · beta 10 · gamma 3 (gamma/beta 0.3) · label smoothing 0.1 · SFT term 0.25",
        ),
        (
            LossRecipe(type="hinge", beta=2.5, gamma_beta_ratio=0.4),
            "SimPO, hinge · beta 2.5 · gamma 1 (gamma/beta 0.4) · label smoothing off · SFT term off",
        ),
    ],
)
def test_every_term_is_named(loss: LossRecipe, words: str) -> None:
    assert loss_terms(loss) == words
