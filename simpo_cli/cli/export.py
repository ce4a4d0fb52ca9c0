"""`simpo export`: a run's model in the form that other programs load."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from simpo_cli.cli.options import TrustRemoteCode, importing, require_model, say, shows_work
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.files import disk_faults
from simpo_cli.model.remote_code import trusting
from simpo_cli.names import not_a_run


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge the run's adapters into the weights under them.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FOLDER", help="What to write; RUN/merged if not given.")
    ] = None,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        typer.Option("--dtype", help="Type of the weights; the recipe's export.dtype if not given."),
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="REPO", help="Send the model to this repository of the hub.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: make a new repository public.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Merge a run's adapters into the model under them, compared before it is kept, or send a model to the hub."""
    require_model(trust_remote_code, loads_one=merge, fix="Leave it out: what is pushed is sent as it is.")
    if not (run / "run.json").is_file():
        raise not_a_run(str(run))
    if not merge and push is None:
        raise UserError(
            "nothing is asked for.",
            "Add --merge to merge adapters, or --push REPO to send the model to the hub; a run that trained all "
            f"weights has its whole model in {run / 'model'}.",
        )
    if not merge and (output is not None or dtype is not None):
        raise UserError("--output and --dtype say how to merge.", "Add --merge, or leave them out.")
    if public and push is None:
        raise UserError("--public says how to push.", "Add --push REPO, or leave it out.")
    _require_model(run)
    if push is not None:
        from simpo_cli.publish.push import require_repo_id

        require_repo_id(push)
    with trusting(trust_remote_code):
        folder = _merged(run, output, dtype) if merge else run / "model"
    if push is not None:
        _push(folder, push, public)


@shows_work
def _merged(run: Path, output: Path | None, dtype: str | None) -> Path:
    """Merge, say what it cost, and return the folder."""
    folder = run / "merged" if output is None else output
    if not (run / "model" / "adapter_config.json").is_file():
        raise UserError(
            f"the run {run} trained all weights, so there is nothing to merge.",
            f"{run / 'model'} is the whole model; load it as it is.",
        )
    with disk_faults(f"{folder} cannot be written"):
        if os.path.lexists(folder):
            raise UserError(f"{folder} exists already.", "Name another folder with --output, or move this one away.")
        folder.parent.mkdir(parents=True, exist_ok=True)
    with importing():
        from simpo_cli.model.source import DTYPES
        from simpo_cli.publish.merge import merge_adapters

    merged = merge_adapters(run, folder, None if dtype is None else DTYPES[dtype])
    say(
        f"merged: all logits at {merged.num_positions:,} positions of real responses within "
        f"{merged.largest_difference:.1g} nats of the adapters' in float32"
    )
    say(
        f"saved in {merged.dtype} and loaded again: {merged.lost:.2g} nats from the adapters, which changed them by "
        f"{merged.change:.2g} (root mean squares)"
    )
    if merged.unrounded is not None:
        say(f"without the rounding of {merged.unrounded.quantization}: {merged.unrounded}")
    say(f"model   {merged.folder}")
    return folder


@shows_work
def _push(folder: Path, repo_id: str, public: bool) -> None:
    """Send a folder that is saved."""
    from simpo_cli.publish.push import push

    address, left_out = push(folder, repo_id, public=public)
    if left_out:
        say(f"left out, as no file of a model: {', '.join(left_out)}")
    say(f"pushed  {address}")


def _require_model(run: Path) -> None:
    """Refuse a run that is not finished; asked before torch is imported."""
    if not (run / "model").is_dir():
        raise UserError(f"the run {run} has no model yet.", "Let the run finish first.", exit_code=ExitCode.ENVIRONMENT)
    from simpo_cli.run.documents import read_receipt
    from simpo_cli.run.folder import require_own_model

    require_own_model(run)
    read_receipt(run)
