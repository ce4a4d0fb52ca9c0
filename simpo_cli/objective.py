"""The objective: pure functions of tensors, nothing else.

SimPO (Meng, Xia and Chen 2024, arXiv:2405.14734) scores a response by its own mean log-probability and asks the
preferred one to win by a margin. No reference model enters, so nothing but the policy has to be in memory; the division
by the length is what keeps a response from winning, or losing, for its length alone.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from simpo_cli.recipe.schema import LossRecipe


@dataclass(frozen=True, slots=True)
class PairTerms:
    """What the objective says of each pair, each of shape (P,).

    losses carries the gradient; rewards are detached.
    """

    losses: Tensor
    rewards_chosen: Tensor
    rewards_rejected: Tensor


def simpo_terms(
    chosen: Tensor,
    rejected: Tensor,
    *,
    beta: float,
    gamma: float,
    loss_type: Literal["sigmoid", "hinge"] = "sigmoid",
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
) -> PairTerms:
    """SimPO loss and rewards of each pair (Meng, Xia and Chen 2024, arXiv:2405.14734, Eq. 4 and 6).

        reward r(x, y) = beta * m(y|x)
        d              = r(x, y_w) - r(x, y_l) - gamma
        sigmoid          (1 - e) * -log sigmoid(d) + e * -log sigmoid(-d)     e = label_smoothing
        hinge            max(0, 1 - d)
        and, when sft_weight is not 0, + sft_weight * -m(y_w|x)

    Args:
        chosen: (P,) mean log-probability of each preferred response, nats per token.
        rejected: (P,) the same for the response it beat.
        beta: reward scale, above 0.
        gamma: target reward margin, in the units of the reward (not divided by beta).
        loss_type: the shape over d.
        label_smoothing: assumed share of flipped labels, sigmoid only.
        sft_weight: weight of the likelihood term of the preferred response; 0 is SimPO.

    Returns:
        Per-pair terms, not a mean: the step divides once by its own number of pairs.
    """
    rewards_chosen, rewards_rejected = beta * chosen, beta * rejected
    distance = rewards_chosen - rewards_rejected - gamma
    match loss_type:
        case "sigmoid":
            losses = -logsigmoid(distance)
            if label_smoothing:
                losses = (1 - label_smoothing) * losses - label_smoothing * logsigmoid(-distance)
        case "hinge":
            losses = torch.relu(1 - distance)
    if sft_weight:
        losses = losses - sft_weight * chosen
    return PairTerms(losses, rewards_chosen.detach(), rewards_rejected.detach())


def terms_under(loss: LossRecipe, chosen: Tensor, rejected: Tensor) -> PairTerms:
    """`simpo_terms` with the values of a recipe's `loss`."""
    return simpo_terms(
        chosen,
        rejected,
        beta=loss.beta,
        gamma=loss.margin,
        loss_type=loss.type,
        label_smoothing=loss.label_smoothing,
        sft_weight=loss.sft_weight,
    )


def gradient_weight(loss: LossRecipe, margins: Tensor) -> Tensor:
    """How hard each pair still pulls its two responses apart, as a share of the most that the loss can, (P,).

        sigmoid: sigmoid(-d)        hinge: 1 where d < 1, else 0        d = margin - gamma

    This is -d loss / d margin of the term of the labels as they are: near 1 for a pair far from the target, 1/2 at it,
    near 0 far past it. Label smoothing is left out: it holds pairs where both of its terms balance, and that is no
    sign of saturation.

    Args:
        loss: the objective.
        margins: (P,) reward margins.
    """
    distance = margins - loss.margin
    match loss.type:
        case "sigmoid":
            return torch.sigmoid(-distance)
        case "hinge":
            return (distance < 1).to(margins.dtype)


def segment_means(logps: Tensor, lengths: Tensor) -> Tensor:
    """m(y|x): the mean of each run of token log-probs (arXiv:2405.14734, Eq. 3).

    Args:
        logps: (N,) token log-probs, response after response.
        lengths: (R,) tokens of each response, all above 0, adding up to N.

    Returns:
        (R,) means, in the order of `lengths`.
    """
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=logps.device), lengths, output_size=len(logps))
    sums = torch.zeros(len(lengths), dtype=logps.dtype, device=logps.device).index_add(0, owner, logps)
    return sums / lengths
