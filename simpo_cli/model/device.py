"""The device and its arithmetic."""

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import Recipe


def open_accelerator(recipe: Recipe) -> tuple[Accelerator, str]:
    """The device, and the arithmetic of forward and backward pass on it: bf16 autocast or float32.

    Raises:
        UserError: the recipe asks for bf16 where the card has none.
    """
    on_cuda = torch.cuda.is_available()
    can_bf16 = not on_cuda or torch.cuda.is_bf16_supported()
    if recipe.train.precision == "bf16" and not can_bf16:
        raise UserError(
            "train.precision is bf16, which this card does not compute in.", "Set train.precision: fp32 or auto."
        )
    wanted = (
        recipe.train.precision if recipe.train.precision != "auto" else ("bf16" if on_cuda and can_bf16 else "fp32")
    )
    if recipe.train.deterministic:
        torch.use_deterministic_algorithms(True)
    set_seed(recipe.seed)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "this version trains in one process, and a launcher started several.",
            "Start it with `simpo train`, without the launcher.",
        )
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run in this process had its own precision
    accelerator = Accelerator(
        mixed_precision="bf16" if wanted == "bf16" else "no",
        cpu=not on_cuda,
        log_with=list(recipe.tracking.report_to) or None,
        project_dir=recipe.output_dir,
    )
    return accelerator, wanted
