"""The first screen of a run: what is trained, on what, toward what."""

import numpy as np
import torch

import simpo_cli
from simpo_cli import statistics
from simpo_cli.audit.document import length_predicts
from simpo_cli.audit.duplicates import repeated_and_contradictory
from simpo_cli.data.plan import tokens_of_each
from simpo_cli.data.prepare import PreparedData, describe_losses, describe_origin
from simpo_cli.data.store import lengths_in_blocks, prompt_keys_of, repeated_prompt_keys_of
from simpo_cli.formatting import share_cell, weights_in_words
from simpo_cli.model.device import device_name
from simpo_cli.model.moments import is_held_in_8_bits, package_of
from simpo_cli.model.source import DTYPE_NAMES, trained_dtype
from simpo_cli.recipe.schema import DataSource, loss_terms
from simpo_cli.run.events import Note, RunHeader
from simpo_cli.train.run_plan import RunPlan
from simpo_cli.versions import installed_version

_SHOWN = 90  # characters of each part of the example


def header(run: RunPlan) -> RunHeader:
    """Everything that is known before the weights are read, in lines."""
    recipe, data, plan = run.recipe, run.data, run.plan
    device = run.accelerator.device
    threads = "1 thread" if torch.get_num_threads() == 1 else f"{torch.get_num_threads()} threads"
    where = f"cpu, {threads}" if device.type == "cpu" else device_name(device)
    compute = "float32" if run.compute == "fp32" else "bfloat16 autocast"
    total, trainable = run.parameters.total, run.parameters.trainable
    trained = "all trained" if total == trainable else f"{trainable / 1e6:.1f} M trained (LoRA)"
    epochs = "1 epoch" if recipe.train.num_epochs == 1 else f"{recipe.train.num_epochs} epochs"
    held_out = f"{len(data.held_out):,} held out" + ("" if data.eval_source else " by prompt") + recipe.eval.half
    code = ", ".join(run.source.code)  # run.json holds the hashes
    lines: list[tuple[str, str] | tuple[str, str, str]] = [
        ("loss", loss_terms(recipe.loss)),
        (
            "model",
            f"{recipe.model.path} · {total / 1e6:.1f} M parameters, {trained} · weights "
            f"{weights_in_words(DTYPE_NAMES[run.weights], run.source.quantization)}",
        ),
        *_adapter(run),
        *_spread(run),
        *([("", f"code of the model was run, as --trust-remote-code asks: {code}")] if code else []),
        ("data", f"{len(data.train):,} pairs to train, {held_out} · {data.train_source.account.decision}"),
        *[("", remark) for remark in (*data.train_source.account.remarks, *data.train_source.account.examples)],
        ("", describe_losses(data.train_source)),
        ("tokens", describe_origin(data.sources)),
        *_example(data),
    ]
    if not data.held_out:
        lines.append(("", "no pairs are held out: nothing will say whether the model got better"))
    if data.shared_prompts:
        lines.append(("", f"{data.shared_prompts} training pairs have a prompt of the evaluation pairs"))
    repeated, opposed = repeated_and_contradictory(data.train)
    for code, count, what in (
        ("DUP001", repeated, "training pairs occurred before"),
        ("LBL002", opposed, "training pairs contradict one another"),
    ):
        if count:
            lines.append(("", f"{code} {count:,} {what}: see simpo stats {data_names(recipe.data.train)}", code))
    longer_by = np.concatenate([lengths[:, 1] - lengths[:, 2] for lengths in lengths_in_blocks(data.train)])
    prompts = prompt_keys_of(data.train) if len(repeated_prompt_keys_of(data.train)) else None
    bias = statistics.longer_wins(longer_by, prompts)
    if length_predicts(bias.low, bias.high):
        finding = f"LEN001 the longer response is the chosen one in {share_cell(bias.as_json())} of training pairs"
        lines.append(("", f"{finding}: see simpo stats {data_names(recipe.data.train)}", "LEN001"))
    lines += [
        (
            "plan",
            f"{plan.num_steps:,} steps of {plan.pairs_per_step} pairs, {epochs} · "
            f"learning rate {recipe.train.learning_rate:g}, {recipe.train.lr_scheduler}, "
            f"warm-up {recipe.train.warmup_ratio:g}",
        ),
        *_optimizer(run),
        ("", _packing(run)),
        ("memory", run.memory),
    ]
    if run.quick:
        lines.append(("quick", "no evaluation and no probe answers: nothing will say whether the model got better"))
    revision = run.source.revision or run.source.whole.revision
    network = "no network used" if revision is None else f"model revision {revision[:12]}"
    title = f"simpo {simpo_cli.__version__} · train {recipe.name} · {where}, {compute} · {network}"
    return RunHeader(title, tuple(Note(*line) for line in lines))


def _adapter(run: RunPlan) -> list[tuple[str, str]]:
    """What becomes of the adapter that the start model is."""
    source, model = run.source, run.recipe.model
    if source.adapter is None or source.adapter_base is None:
        return []
    if model.adapter == "continue":
        what = "trained further"
    else:
        what = "merged into it, and all weights trained" if model.lora is None else "merged into it under a new one"
    return [("", f"an adapter ({source.adapter}) on {source.adapter_base.name}, {what}")]


def _optimizer(run: RunPlan) -> list[tuple[str, str]]:
    """How moments are held and weights rounded, where that is not float32 throughout."""
    name, trained = run.recipe.train.optimizer, trained_dtype(run.recipe.model)
    if (package := package_of(name, trained)) is not None:
        in_8_bits = [s for s in run.parameters.trained_sizes if is_held_in_8_bits(s, whole_blocks=trained.itemsize < 4)]
        share = sum(in_8_bits) / max(1, run.parameters.trainable)
        moments = f"{name} of {package} {installed_version(package)}, {100 * share:.0f} % of the moments in 8 bits"
    elif trained == torch.float32:
        return []
    else:
        moments = f"{name}, moments in float32"
    rounding = {torch.bfloat16: "; bfloat16 weights are rounded stochastically"}
    return [("", moments + rounding.get(trained, ""))]


def _spread(run: RunPlan) -> list[tuple[str, str]]:
    """How the run is spread over processes, where there are several or weights are sharded."""
    processes = "1 process" if run.num_ranks == 1 else f"{run.num_ranks} processes"
    match run.strategy:
        case "none":
            return []
        case "ddp":
            how = "the model whole on each, gradients added up once a step"
        case "fsdp2":
            how = (
                "weights, gradients and optimizer state sharded" if run.recipe.model.lora is None else "weights sharded"
            )
    return [("devices", f"{processes} · {run.strategy}: {how}")]


def _example(data: PreparedData) -> list[tuple[str, str]]:
    """The first pair as the model will see it, so that a wrong template or a wrong cut is seen before it is trained."""
    pair = data.train[0]
    parts = (("prompt", pair.prompt), ("chosen", pair.chosen), ("rejected", pair.rejected))
    texts = [f"{name:<8}  {_shortened(data.tokenizer.decode(ids.tolist()))}" for name, ids in parts]
    return list(zip(("example", "", ""), texts, strict=True))


def _shortened(text: str) -> str:
    """The beginning and the end of a text in one line."""
    text = text.replace("\n", "⏎")
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} … {text[-_SHOWN // 2 :]}"


def _packing(run: RunPlan) -> str:
    """How pairs will go through the model, and what that saves."""
    if run.packing == "padded":
        return "pairs in padded rows" + (f": {run.why_padded}" if run.why_padded else "")
    rows, shared = (int(tokens_of_each(run.data.train, packing).sum()) for packing in ("padded", "shared_prefix"))
    return f"every prompt once, no padding: {100 * (1 - shared / rows):.0f} % fewer tokens than pairs of padded rows"


def data_names(sources: list[DataSource]) -> str:
    """The paths that data.train or data.eval names, as one would type them behind `simpo stats`."""
    return " ".join(source.path for source in sources)
