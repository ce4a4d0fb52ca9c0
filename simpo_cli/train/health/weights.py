"""What a narrow type of weights rounds away, seen on a sample of the weights.

A bfloat16 number has eight significant bits, so next to a weight of 0.02 the nearest other one is 0.0001 away, and an
update of 1e-6 leads back to the same number. Where weights are trained in such a type, that update is lost for good.
Where they are trained in float32 and saved in bfloat16, updates add up first, and the save loses what has not added up
to enough.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn, optim

from simpo_cli.model.rounding import Rounding, RoundingSums

_SAMPLED = 4096  # of each tensor


@dataclass(frozen=True)
class WeightSample:
    """Evenly spread weights of every trained tensor, and what they were when the sample was taken.

    Attributes:
        parameters: the tensors.
        before: of each, the sampled weights as they were, in their own type.
    """

    parameters: Sequence[nn.Parameter]
    before: Sequence[Tensor]

    @classmethod
    def of(cls, parameters: Mapping[str, nn.Parameter]) -> "WeightSample":
        """Take a sample now."""
        tensors = list(parameters.values())
        return cls(tensors, [sampled(tensor) for tensor in tensors])

    def rounding(self, dtype: torch.dtype) -> Rounding:
        """What a save in `dtype` would now do to the change since the sample was taken, estimated for all weights."""
        sums = RoundingSums()
        for parameter, before in zip(self.parameters, self.before, strict=True):
            sums.add(before, sampled(parameter), dtype, weight=parameter.numel() / before.numel())
        return sums.rounding


def step_counting_lost(optimizer: optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> float:
    """Take the optimizer's step, and return the share of the updates that led back to the same weight.

    An update is what AdamW moves a weight by: it is there where the weight's first moment is not 0.
    """
    sample = WeightSample.of(parameters)
    optimizer.step()
    counts = []
    for parameter, before in zip(sample.parameters, sample.before, strict=True):
        is_updated = sampled(optimizer.state[parameter]["exp_avg"]) != 0
        counts.append(torch.stack([is_updated.sum(), (is_updated & (sampled(parameter) == before)).sum()]))
    updates = lost = 0.0
    for parameter, before, (moved, back) in zip(
        sample.parameters,
        sample.before,
        torch.stack(counts).tolist(),
        strict=True,  # read at once: a read is a wait
    ):
        weight = parameter.numel() / before.numel()
        updates += weight * moved
        lost += weight * back
    return lost / updates if updates else 0.0


def sampled(tensor: Tensor) -> Tensor:
    """A copy of at most 4,096 evenly spread values of a tensor."""
    flat = tensor.detach().reshape(-1)
    return flat[:: -(-len(flat) // _SAMPLED)].clone()
