"""The device and its arithmetic, for a command and for a program that uses the library."""

import os
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import parse_flag_from_env, set_seed

from simpo_cli.distributed import ranks
from simpo_cli.distributed.place import place_in
from simpo_cli.errors import UserError
from simpo_cli.model.allocator import keep_freed_memory
from simpo_cli.model.backend import backend_of, multiplies_in_bf16
from simpo_cli.recipe.schema import Recipe

Precision = Literal["bf16", "fp32"]  # of forward and backward pass: bf16 autocast or float32
DeviceType = Literal["cpu", "cuda", "mps", "xpu"]
_OF_ACCELERATE: dict[Precision, str] = {"bf16": "bf16", "fp32": "no"}


def device_type() -> DeviceType:
    """The type of device that this process computes on: accelerate's choice, of those that are known here."""
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "cpu"
    if torch.backends.mps.is_available():
        return "mps"
    if torch.cuda.is_available():  # of ROCm as well
        return "cuda"
    return "xpu" if torch.xpu.is_available() else "cpu"


def open_accelerator(recipe: Recipe) -> tuple[Accelerator, Precision]:
    """The device of a command, and the arithmetic on it; the process is the command's, and takes its settings.

    Raises:
        UserError: the recipe asks for bf16 where the card has none, or a launcher started several processes.
    """
    precision = choose_precision(recipe.train.precision, "train.precision")
    on_cpu = device_type() == "cpu"
    if on_cpu:
        keep_freed_memory()
    if recipe.train.deterministic:
        # read when cuBLAS is first used, which is later: without it torch refuses every matrix product on a card
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    set_seed(recipe.seed)
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run in this process had its own precision
    accelerator = Accelerator(mixed_precision=_OF_ACCELERATE[precision], cpu=on_cpu, project_dir=recipe.output_dir)
    return accelerator, precision


def join_accelerator(wanted: Literal["auto", "bf16", "fp32"]) -> tuple[Accelerator, Precision]:
    """The device of a program that is not ours, and the arithmetic on it.

    Neither its random generators nor its `Accelerator` are touched: accelerate has one precision in a process, so where
    the program has an `Accelerator`, `auto` takes its precision.

    Raises:
        UserError: bf16 is wanted where the card has none, a launcher started several processes, or the program's
            `Accelerator` has another precision.
    """
    precision = choose_precision(wanted, "precision")
    if not is_initialized():
        return Accelerator(mixed_precision=_OF_ACCELERATE[precision], cpu=device_type() == "cpu"), precision
    accelerator = Accelerator()
    for its, name in _OF_ACCELERATE.items():
        if accelerator.mixed_precision == name and wanted in ("auto", its):
            return accelerator, its
    raise UserError(
        f"precision is {wanted}, and this program has an Accelerator of mixed_precision={accelerator.mixed_precision}, "
        "which holds for the whole process.",
        "Make that Accelerator with mixed_precision='bf16' or 'no', and leave precision at auto.",
    )


def choose_precision(wanted: Literal["auto", "bf16", "fp32"], key: str) -> Precision:
    """The arithmetic of forward and backward pass; `auto` is bf16 where the device multiplies in it.

    Raises:
        UserError: bf16 is wanted where the card has none, or a launcher started several processes for what one does.
    """
    place = place_in()
    if place is not None and place.world_size > 1 and ranks.world_size() == 1:
        raise UserError(
            "this runs in one process, and a launcher started several.",
            "Start it without the launcher; only `simpo train` uses several.",
        )
    kind = device_type()
    if wanted == "bf16" and not _has_bf16(kind):
        raise UserError(f"{key} is bf16, which this card does not compute in.", f"Set {key} to fp32 or auto.")
    if wanted == "auto":
        return "bf16" if multiplies_in_bf16(kind) else "fp32"
    return wanted


def _has_bf16(kind: DeviceType) -> bool:
    """Whether the device computes in bf16 at all."""
    match kind:
        case "cuda" | "xpu":
            return bool(torch.get_device_module(kind).is_bf16_supported())
        case "mps":
            return torch.backends.mps.is_macos_or_newer(14, 0)
        case "cpu":
            return True


def device_name(device: torch.device) -> str:
    """The device in words: the card's name, or the CPU with its cores."""
    if device.type in ("cuda", "xpu"):
        return str(torch.get_device_module(device).get_device_name(device))
    return f"{device.type}, {os.cpu_count()} cores"


def untried(device: torch.device) -> str | None:
    """What a run says once on a type of device that was not run by the authors."""
    row = backend_of(device)
    if row.was_run:
        return None
    return f"{row.name}: not run by us; attention is {row.attention}, and the self-check decides (docs/compute.md)"
