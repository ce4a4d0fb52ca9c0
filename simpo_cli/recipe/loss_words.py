"""The objective in words, the same on every screen and page."""

from simpo_cli.recipe.schema import LossRecipe


def loss_terms(loss: LossRecipe) -> str:
    """SimPO, sigmoid · beta 2 · gamma 1 (gamma/beta 0.5) · label smoothing off · SFT term off."""
    return " · ".join(
        (
            f"SimPO, {loss.type}",
            f"beta {loss.beta:g}",
            f"gamma {loss.margin:g} (gamma/beta {loss.margin_beta_ratio:g})",
            f"label smoothing {loss.label_smoothing:g}" if loss.label_smoothing else "label smoothing off",
            f"SFT term {loss.sft_weight:g}" if loss.sft_weight else "SFT term off",
        )
    )
