"""What a save in a narrower type than that of training keeps of the change that training made."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simpo_cli.model.load import DTYPES, ModelSource, load_merged
from simpo_cli.recipe.schema import Recipe
from simpo_cli.stages import stage


@dataclass(frozen=True, slots=True)
class Rounding:
    """What the save in a narrower type did to the change that training made.

    Attributes:
        kept_share: length of the saved change along the trained change, over the length of the trained change; 1 is
        all. rounded_back_share: share of the changed weights that fell back to their start value.
    """

    kept_share: float
    rounded_back_share: float


class RoundingSums:
    """Adds up what rounding does to the change of each tensor."""

    def __init__(self) -> None:
        self._along = self._length = self._changed = self._fell_back = 0.0

    @torch.no_grad()
    def add(self, before: Tensor, after: Tensor, dtype: torch.dtype, *, weight: float = 1.0) -> None:
        """Compare a tensor before training, after it, and after it in another type.

        Args:
            before, after: of one shape, in any type.
            dtype: the type of the save.
            weight: what each value counts for, where the tensor is a sample of a larger one.
        """
        before, after = before.float(), after.float()
        change, saved_change = after - before, after.to(dtype).float() - before
        moved = change != 0
        self._along += weight * float((change * saved_change).sum(dtype=torch.float64))
        self._length += weight * float((change * change).sum(dtype=torch.float64))
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
