"""`simpo export`: a run's model in the form that other programs load."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from simpo_cli.data.writing import disk_faults
from simpo_cli.errors import ExitCode, UserError


class WeightType(StrEnum):
    """Type of the weights that are written."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge the run's adapters into the weights under them.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FOLDER", help="What to write; RUN/merged if not given.")
    ] = None,
    dtype: Annotated[
        WeightType | None, typer.Option("--dtype", help="Type of the weights; the recipe's export.dtype if not given.")
    ] = None,
) -> None:
    """Write a run's adapters and the model under them as one folder, compared with the adapters before it is kept."""
    if not merge:
        raise UserError(
            "there is one way to export so far, and it is not asked for.",
            f"Add --merge to merge adapters; a run that trained all weights has its whole model in {run / 'model'}.",
        )
    folder = run / "merged" if output is None else output
    _require_adapters(run)
    with disk_faults(f"{folder} cannot be written"):
        if os.path.lexists(folder):
            raise UserError(f"{folder} exists already.", "Name another folder with --output, or move this one away.")
        folder.parent.mkdir(parents=True, exist_ok=True)
    from simpo_cli.cli.quiet import quiet_libraries

    quiet_libraries()
    from simpo_cli.model.load import DTYPES
    from simpo_cli.report.console import err, printable
    from simpo_cli.train.merge import merge_adapters

    merged = merge_adapters(run, folder, None if dtype is None else DTYPES[dtype.value])
    err.print(
        f"merged and loaded again: {merged.num_tokens:,} response tokens of real pairs within "
        f"{merged.largest_difference:.1g} nats of the adapters in float32"
    )
    err.print(
        f"saved in {merged.dtype}: {merged.lost:.2g} nats from the adapters, which changed them by "
        f"{merged.change:.2g} (root mean squares)"
    )
    err.print(f"model   {printable(str(merged.folder))}")


def _require_adapters(run: Path) -> None:
    """Refuse what is no finished run with adapters; asked before torch is imported."""
    if not (run / "run.json").is_file():
        raise UserError(f"{run} is not a run.", "Name the folder of a run: it holds run.json.")
    if not (run / "model").is_dir():
        raise UserError(f"the run {run} has no model yet.", "Let the run finish first.", exit_code=ExitCode.ENVIRONMENT)
    if not (run / "model" / "adapter_config.json").is_file():
        raise UserError(
            f"the run {run} trained all weights, so there is nothing to merge.",
            f"{run / 'model'} is the whole model; load it as it is.",
        )
