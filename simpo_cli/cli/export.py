"""`simpo export`: a run's model in the form that other programs load."""

import os
from pathlib import Path
from shlex import quote
from typing import Annotated, Literal

import typer

from simpo_cli.cli.options import TrustRemoteCode, importing, require_model, say, shows_work
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.files import disk_faults, replacing
from simpo_cli.model.remote_code import trusting
from simpo_cli.names import not_a_run
from simpo_cli.versions import require_extra


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge the run's adapters into the weights under them.")
    ] = False,
    gguf: Annotated[
        Literal["bf16", "q8_0"] | None,
        typer.Option("--gguf", help="Write one file with weights of this type, for llama.cpp and Ollama."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="PATH", help="What to write; RUN/merged or RUN/NAME-TYPE.gguf if not given."),
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
    """Merge a run's adapters into the model under them, write one file for llama.cpp and Ollama, or send a model to the
    hub. What is written is compared before it is kept."""
    require_model(trust_remote_code, loads_one=merge, fix="Leave it out: no code of a model is run here.")
    if not (run / "run.json").is_file():
        raise not_a_run(str(run))
    if not merge and push is None and gguf is None:
        raise UserError(
            "nothing is asked for.",
            "Add --merge to merge adapters, --gguf q8_0 to write one file for Ollama, or --push REPO to send the model "
            f"to the hub; a run that trained all weights has its whole model in {run / 'model'}.",
        )
    if gguf is not None and (merge or push is not None or dtype is not None):
        raise UserError(
            "--gguf writes one file of its own type, adapters merged, and pushes nothing.",
            "Leave --merge, --dtype and --push out, or export twice.",
        )
    if not merge and gguf is None and (output is not None or dtype is not None):
        raise UserError("--output and --dtype say how to merge.", "Add --merge or --gguf, or leave them out.")
    if public and push is None:
        raise UserError("--public says how to push.", "Add --push REPO, or leave it out.")
    _require_model(run)
    if push is not None:
        from simpo_cli.publish.push import require_repo_id

        require_repo_id(push)
    if gguf is not None:
        require_extra("gguf", "gguf", "a GGUF file")
        _written(run, output, gguf)
        return
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
    _require_free(folder)
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


def _require_free(path: Path) -> None:
    """Refuse to write where something is, and make the folder that it will lie in."""
    with disk_faults(f"{path} cannot be written"):
        if os.path.lexists(path):
            raise UserError(f"{path} exists already.", "Name another with --output, or move this one away.")
        path.parent.mkdir(parents=True, exist_ok=True)


@shows_work
def _written(run: Path, output: Path | None, kind: Literal["bf16", "q8_0"]) -> None:
    """Write the GGUF file and the Modelfile beside it, and say what was compared and how to use them."""
    from simpo_cli.publish.ollama import MODELFILE, is_edited, learn_turns, modelfile, require_own
    from simpo_cli.publish.serve import served_name

    name = served_name(run.resolve().name)
    file = run / f"{name}-{kind}.gguf" if output is None else output
    _require_free(file)
    beside = file.with_name(MODELFILE)
    require_own(beside)
    with importing():
        from simpo_cli.publish.gguf import export_gguf

    written = export_gguf(run, file, kind)
    turns = learn_turns(written.tokenizer, written.template_kwargs, add_bos=written.add_bos)
    stops = sorted(written.tokenizer.decode([i]) for i in written.tokenizer.end_ids_under(written.template_kwargs))
    content = modelfile(file.name, turns, stops)
    if is_edited(beside, content):
        say(f"kept      {beside}, which was edited: see that it says FROM ./{file.name}")
    else:
        with disk_faults(f"{beside} cannot be written"), replacing(beside) as stream:
            stream.write(content)
    largest, mean = written.rounding
    say(f"read back weights equal, {written.num_tokens:,} response tokens within {written.difference:.1g} nats")
    say(f"tokens    equal for {written.num_texts} texts, pre-tokenizer {written.pre}")
    say(f"rounding  {mean:.2g} nats per response token against model/, {largest:.2g} at most")
    if written.merge is not None:
        change, lost = written.merge
        say(f"adapters  moved the logits by {change:.2g} nats, the type by {lost:.2g} (root mean squares)")
    if written.trained_beside is not None:
        say(f"base      whole, and training had it in {written.trained_beside}: simpo export --merge compares the two")
    if turns is None and written.tokenizer.has_template:
        say(f"template  not in {MODELFILE}: Go's language cannot say it; llama-server reads it in the file")
    say(f"file      {file} ({written.num_bytes / 1e6:,.0f} MB)")
    say(f"next      ollama create {name} -f {quote(str(beside))}")
    say(f"          llama-server -m {quote(str(file))}")


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
