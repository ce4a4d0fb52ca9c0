"""The objective: the one place that knows beta, gamma and the reward. Pure functions, nothing else.

SimPO (Meng, Xia and Chen 2024, arXiv:2405.14734) scores a response by its own mean log-probability and asks the chosen
one to win by a margin. No reference model enters, so nothing but the policy has to be in memory; the division by the
length is what keeps a response from winning, or losing, for its length alone.

Rewards and margins are arithmetic, of floats, numpy arrays and tensors alike. Losses are of tensors, and torch is
imported for them alone: a report can ask for a margin, or for the formula of the loss, without it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from simpo_cli.recipe.schema import LossRecipe

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]
Numbers = TypeVar("Numbers", float, Floats, "Tensor")


@dataclass(frozen=True, slots=True)
class PairTerms:
    """What the objective says of each pair, each of shape (P,).

    losses carries the gradient; rewards are detached.
    """

    losses: "Tensor"
    rewards_chosen: "Tensor"
    rewards_rejected: "Tensor"


class Shape(NamedTuple):
    """A loss as a function of d, the distance of a margin from the target."""

    loss: Callable[["Tensor"], "Tensor"]  # (P,) distances to (P,) losses
    gradient_weight: Callable[["Tensor"], "Tensor"]  # see `Objective.gradient_weight`; (P,) distances to (P,) shares
    formula: str  # as people write it


@dataclass(frozen=True, slots=True)
class Objective:
    """SimPO with the values of a recipe's `loss` (arXiv:2405.14734, Eq. 4 and 6).

    reward r(x, y) = beta * m(y|x)              m: mean log-probability of a response, nats per token
    margin         = r(x, y_w) - r(x, y_l)
    d              = margin - gamma             gamma: the target, in the units of the reward (not divided by beta)
    loss           = the loss's shape over d, and, when sft_weight is not 0, + sft_weight * -m(y_w|x)
    """

    loss: LossRecipe

    @property
    def gamma(self) -> float:
        """The target margin, in units of the reward, whichever way the recipe gives it."""
        return self.loss.margin

    def reward(self, mean_logp: Numbers) -> Numbers:
        """Rewards of mean log-probabilities in nats per token; of a difference of two, its margin."""
        return self.loss.beta * mean_logp

    def margin(self, chosen: Numbers, rejected: Numbers) -> Numbers:
        """Margins of the mean log-probabilities of the two responses of pairs."""
        return self.reward(chosen) - self.reward(rejected)

    def terms(self, chosen: "Tensor", rejected: "Tensor") -> PairTerms:
        """Loss and rewards of each pair.

        Args:
            chosen: (P,) mean log-probability of each chosen response, nats per token.
            rejected: (P,) the same for the rejected response.

        Returns:
            Per-pair terms, not a mean: the step divides once by its own number of pairs.
        """
        rewards_chosen, rewards_rejected = self.reward(chosen), self.reward(rejected)
        losses = self.shape.loss(rewards_chosen - rewards_rejected - self.gamma)
        if self.loss.sft_weight:
            losses = losses - self.loss.sft_weight * chosen
        return PairTerms(losses, rewards_chosen.detach(), rewards_rejected.detach())

    def losses(self, chosen: Floats, rejected: Floats) -> Floats:
        """(P,) losses of pairs that are scored already, as `terms` has them."""
        import torch

        losses: Floats = self.terms(torch.from_numpy(chosen), torch.from_numpy(rejected)).losses.numpy()
        return losses

    def gradient_weight(self, margins: "Tensor") -> "Tensor":
        """(P,) how hard each pair still pulls its two responses apart, as a share of the most that the loss can.

        This is -d loss / d margin of the term of the labels as they are: near 1 for a pair far from the target, near 0
        far past it, where the loss is saturated. Label smoothing is left out: it holds pairs where both of its terms
        balance, and that is no sign of saturation.

        Args:
            margins: (P,) reward margins.
        """
        return self.shape.gradient_weight(margins - self.gamma)

    @property
    def shape(self) -> Shape:
        """The loss over d. A new loss is a function below, its name in `LossRecipe.type`, and a case here."""
        smoothing = self.loss.label_smoothing
        match self.loss.type:
            case "sigmoid":
                formula = "-log sigmoid(d)"
                if smoothing:
                    formula = f"{1 - smoothing:g} × {formula} + {smoothing:g} × -log sigmoid(-d)"
                return Shape(lambda d: sigmoid_loss(d, smoothing), lambda d: (-d).sigmoid(), formula)
            case "hinge":
                return Shape(hinge_loss, lambda d: (d < 1).to(d.dtype), "max(0, 1 - d)")

    @property
    def formula(self) -> str:
        """The loss of a pair as a function of d, with the terms that are on."""
        sft = f" + {self.loss.sft_weight:g} × -m(chosen)" if self.loss.sft_weight else ""
        return self.shape.formula + sft

    def has_rewards_of(self, other: "Objective") -> bool:
        """Whether margins and losses under both are in the same units."""
        return (self.loss.type, self.loss.beta, self.gamma) == (other.loss.type, other.loss.beta, other.gamma)

    def as_json(self) -> dict[str, Any]:
        """The objective with gamma given both ways."""
        return {
            "type": self.loss.type,
            "beta": self.loss.beta,
            "gamma": self.gamma,
            "gamma_beta_ratio": self.loss.margin_beta_ratio,
            "label_smoothing": self.loss.label_smoothing,
            "sft_weight": self.loss.sft_weight,
        }


def sigmoid_loss(d: "Tensor", label_smoothing: float = 0.0) -> "Tensor":
    """(P,) (1 - e) * -log sigmoid(d) + e * -log sigmoid(-d), e being the assumed share of flipped labels (Eq. 6)."""
    from torch.nn.functional import logsigmoid

    losses = -logsigmoid(d)
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * logsigmoid(-d)
    return losses


def hinge_loss(d: "Tensor") -> "Tensor":
    """(P,) max(0, 1 - d)."""
    return (1 - d).relu()


def segment_means(logps: "Tensor", lengths: "Tensor") -> "Tensor":
    """m(y|x): the mean of each run of token log-probs (arXiv:2405.14734, Eq. 3).

    Args:
        logps: (N,) token log-probs, response after response.
        lengths: (R,) tokens of each response, all above 0, adding up to N.

    Returns:
        (R,) means, in the order of `lengths`.
    """
    import torch

    owner = torch.repeat_interleave(torch.arange(len(lengths), device=logps.device), lengths, output_size=len(logps))
    sums = torch.zeros(len(lengths), dtype=logps.dtype, device=logps.device).index_add(0, owner, logps)
    return sums / lengths
