"""How the two moments of AdamW are held: by which package, and in how many bytes."""

from importlib import import_module
from typing import Any

import torch

from simpo_cli.model.load import ParameterCounts

BLOCK = 256
"""Numbers of an 8-bit moment that share a scale."""


def is_held_in_8_bits(size: int, *, whole_blocks: bool) -> bool:
    """Whether 8-bit AdamW holds the moments of a tensor of `size` numbers so: below 4,096 of them it gains nothing.

    Args:
        whole_blocks: whether the blocks have to be whole ones: those of torchao are, those of bitsandbytes need not be.
    """
    return size >= 4096 and not (whole_blocks and size % BLOCK)


def moments_size(optimizer: str, parameters: ParameterCounts, itemsize: int) -> int:
    """Bytes of both moments of AdamW, in memory and in a checkpoint.

    In 8 bits they are two codes, two scales a block, and for each tensor two maps of 256 values.

    Args:
        optimizer: of the recipe.
        itemsize: bytes of a trained weight; narrow ones have moments of torchao, float32 ones of bitsandbytes.
    """
    if optimizer == "adamw":
        return 8 * parameters.trainable
    return sum(
        2 * (size + 4 * -(-size // BLOCK) + 4 * 256) if is_held_in_8_bits(size, whole_blocks=itemsize < 4) else 8 * size
        for size in parameters.trained_sizes
    )


def package_of(optimizer: str, trained: torch.dtype) -> str | None:
    """The package that holds the moments of a recipe's optimizer for weights of a type; None where torch does."""
    if optimizer == "adamw":
        return None
    return "bitsandbytes" if trained == torch.float32 else "torchao"


def torchao_moment() -> Any:
    """torchao's 8-bit moment."""
    return import_module("torchao.optim.subclass_8bit").OptimState8bit
