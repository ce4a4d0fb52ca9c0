"""What rounding takes away from training: updates of weights in a narrow type, and the change in a narrower save.

A bfloat16 number has eight significant bits, so next to a weight of 0.02 the nearest other one is 0.0001 away, and an
update of 1e-6 leads back to the same number. Where weights are trained in such a type and rounded to the nearest, that
update is lost for good. Where they are trained in float32 and saved in bfloat16, updates add up first, and the save
loses what has not added up to enough.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn, optim

from simpo_cli.distributed import ranks
from simpo_cli.distributed.sharded import is_sharded, local
from simpo_cli.model.backend import backend_of
from simpo_cli.model.load import load_merged
from simpo_cli.model.source import DTYPES, ModelSource
from simpo_cli.recipe.schema import Recipe
from simpo_cli.stages import stage

_SAMPLED = 4096  # of each tensor


def loses_updates(weights: Mapping[str, nn.Parameter]) -> bool:
    """Whether training rounds weights to the nearest number: float32 hardly does, and bfloat16 is rounded by chance."""
    return any(weight.dtype not in (torch.float32, torch.bfloat16) for weight in weights.values())


@dataclass(frozen=True, slots=True)
class Rounding:
    """What the save in a narrower type did to the change that training made."""

    kept_share: float  # length of the saved change along the trained change, over the length of the latter; 1 is all
    rounded_back_share: float  # of the changed weights, those that fell back to their start value


class RoundingSums:
    """Adds up what rounding does to the change of each tensor."""

    def __init__(self) -> None:
        self._along = self._length = self._changed = self._fell_back = 0.0

    def sum_over_ranks(self) -> None:
        """Add what the other ranks have added up of their shards."""
        own = torch.tensor([self._along, self._length, self._changed, self._fell_back], dtype=torch.float64)
        self._along, self._length, self._changed, self._fell_back = ranks.sum_over_ranks(own).tolist()

    @torch.no_grad()
    def add(self, before: Tensor, after: Tensor, dtype: torch.dtype, *, weight: float = 1.0) -> None:
        """Compare a tensor before training, after it, and after it in another type.

        Args:
            before, after: of one shape, in any type.
            weight: what each value counts for, where the tensor is a sample of a larger one.
        """
        before, after = before.float(), after.float()
        widest = backend_of(after.device).widest
        change, saved_change = after - before, after.to(dtype).float() - before
        moved = change != 0
        self._along += weight * float((change * saved_change).sum(dtype=widest))
        self._length += weight * float((change * change).sum(dtype=widest))
        self._changed += weight * int(moved.sum())
        self._fell_back += weight * int((moved & (saved_change == 0)).sum())

    @property
    def rounding(self) -> Rounding:
        """The shares; all is kept where nothing changed."""
        return Rounding(
            kept_share=self._along / self._length if self._length else 1.0,
            rounded_back_share=self._fell_back / self._changed if self._changed else 0.0,
        )


def export_dtype(recipe: Recipe, source: ModelSource) -> torch.dtype:
    """The type of the weights in model/: the recipe's, or the start model's own."""
    return source.stored_dtype if recipe.export.dtype == "auto" else DTYPES[recipe.export.dtype]


@stage("comparing saved weights with those of the start")
def measure_rounding(model: nn.Module, source: ModelSource, dtype: torch.dtype) -> Rounding:
    """Compare start, trained and saved weights, one tensor at a time.

    The start model is read once more for this, in its stored type; a merge, which is stored nowhere, in float32.
    """
    start = dict(load_merged(source, "stored" if source.adapter is None else torch.float32).named_parameters())
    sums = RoundingSums()
    for name, trained in model.named_parameters():
        sums.add(start[name].to(trained.device), trained, dtype)
    return sums.rounding


@dataclass(frozen=True)
class WeightSample:
    """Evenly spread weights of every trained tensor, and what they were when the sample was taken."""

    parameters: Sequence[nn.Parameter]  # the tensors
    before: Sequence[Tensor]  # of each, the sampled weights as they were, in their own type

    @classmethod
    def of(cls, parameters: Mapping[str, nn.Parameter]) -> "WeightSample":
        """Take a sample now."""
        tensors = list(parameters.values())
        return cls(tensors, [sampled(tensor) for tensor in tensors])

    def rounding(self, dtype: torch.dtype) -> Rounding:
        """What a save in `dtype` would now do to the change since the sample was taken, estimated for all weights."""
        sums = RoundingSums()
        for parameter, before in zip(self.parameters, self.before, strict=True):
            sums.add(before, sampled(parameter), dtype, weight=_weight(parameter, before))
        if any(map(is_sharded, self.parameters)):
            sums.sum_over_ranks()
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
    read = torch.stack(counts).tolist()  # at once: a read is a wait
    for parameter, before, (moved, back) in zip(sample.parameters, sample.before, read, strict=True):
        weight = _weight(parameter, before)
        updates += weight * moved
        lost += weight * back
    if any(map(is_sharded, sample.parameters)):
        updates, lost = ranks.sum_over_ranks(torch.tensor([updates, lost], dtype=torch.float64)).tolist()
    return lost / updates if updates else 0.0


def _weight(parameter: Tensor, sample: Tensor) -> float:
    """What each sampled value stands for; of a shard that holds nothing there is none."""
    return local(parameter).numel() / max(1, sample.numel())


def sampled(tensor: Tensor) -> Tensor:
    """A copy of at most 4,096 evenly spread values of a tensor, or of this rank's shard of it."""
    flat = local(tensor.detach()).reshape(-1)
    return flat[:: max(1, -(-len(flat) // _SAMPLED))].clone()
