"""The device and its arithmetic."""

import os
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from simpo_cli.errors import UserError
from simpo_cli.model.allocator import keep_freed_memory
from simpo_cli.recipe.schema import Recipe


def open_accelerator(recipe: Recipe) -> tuple[Accelerator, Literal["bf16", "fp32"]]:
    """The device, and the arithmetic of forward and backward pass on it: bf16 autocast or float32.

    `precision: auto` takes bf16 where the device multiplies in it, and float32 elsewhere.

    Raises:
        UserError: the recipe asks for bf16 where the card has none, or a launcher started several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "this version trains in one process, and a launcher started several.",
            "Start it with `simpo train`, without the launcher.",
        )
    on_cuda = torch.cuda.is_available()
    precision = recipe.train.precision
    if precision == "bf16" and on_cuda and not torch.cuda.is_bf16_supported():
        raise UserError(
            "train.precision is bf16, which this card does not compute in.", "Set train.precision: fp32 or auto."
        )
    if precision == "auto":
        precision = "bf16" if multiplies_in_bf16(on_cuda=on_cuda) else "fp32"
    if not on_cuda:
        keep_freed_memory()
    if recipe.train.deterministic:
        torch.use_deterministic_algorithms(True)
    set_seed(recipe.seed)
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run in this process had its own precision
    accelerator = Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        cpu=not on_cuda,
        project_dir=recipe.output_dir,
    )
    return accelerator, precision


def multiplies_in_bf16(*, on_cuda: bool) -> bool:
    """Whether the device multiplies matrices faster in bf16 than in float32.

    Of CPUs those with tiles (AMX) do. AVX-512's dot products of bf16 alone do not: on a Xeon with them and without
    tiles, products of (2048, 576) by (576, 1536) ran at 154 GFLOP/s in bf16 and at 269 in float32 (two threads, best of
    ten).
    """
    if on_cuda:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.cpu._is_amx_tile_supported()
