"""The first screen of a run: what is trained, on what, toward what."""

import torch

import simpo_cli
from simpo_cli import statistics
from simpo_cli.audit.document import length_predicts
from simpo_cli.data.plan import microbatch_tokens
from simpo_cli.data.prepare import describe_losses
from simpo_cli.model.load import DTYPE_NAMES
from simpo_cli.recipe.schema import DataSource
from simpo_cli.statistics import Measured
from simpo_cli.train.events import RunHeader
from simpo_cli.train.setting import Setting


def header(setting: Setting) -> RunHeader:
    """Everything that is known before the weights are read, in lines."""
    recipe, data, plan = setting.recipe, setting.data, setting.plan
    device = setting.accelerator.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    compute = "float32" if setting.compute == "fp32" else "bfloat16 autocast"
    loss = recipe.loss
    terms = [
        f"SimPO, {loss.type}",
        f"beta {loss.beta:g}",
        f"gamma {loss.margin:g} (gamma/beta {loss.margin / loss.beta:g})",
        f"label smoothing {loss.label_smoothing:g}" if loss.label_smoothing else "label smoothing off",
        f"SFT term {loss.sft_weight:g}" if loss.sft_weight else "SFT term off",
    ]
    total, trainable = setting.parameters.total, setting.parameters.trainable
    trained = "all trained" if total == trainable else f"{trainable / 1e6:.1f} M trained (LoRA)"
    held_out = f"{len(data.held_out):,} held out" + ("" if data.eval_source else " by prompt")
    lines = [
        ("loss", " · ".join(terms)),
        (
            "model",
            f"{recipe.model.path} · {total / 1e6:.1f} M parameters, {trained} · weights {DTYPE_NAMES[setting.weights]}",
        ),
        ("data", f"{len(data.train):,} pairs to train, {held_out} · {data.train_source.loaded.decision}"),
        ("", describe_losses(data.train_source)),
    ]
    if not data.held_out:
        lines.append(("", "no pairs are held out: nothing will say whether the model got better"))
    if data.shared_prompts:
        lines.append(("", f"{data.shared_prompts} training pairs have a prompt of the evaluation pairs"))
    bias = statistics.longer_wins(
        [len(pair.chosen) for pair in data.train],
        [len(pair.rejected) for pair in data.train],
        [pair.prompt_key for pair in data.train],
    )
    if length_predicts(bias.low, bias.high):
        told = f"LEN001 the longer response is the chosen one in {percent(bias)} of training pairs"
        lines.append(("", f"{told}: see simpo stats {data_names(recipe.data.train)}"))
    lines += [
        (
            "plan",
            f"{plan.num_steps:,} steps of {plan.pairs_per_step} pairs, {_epochs(recipe.train.num_epochs)} · "
            f"learning rate {recipe.train.learning_rate:g}, {recipe.train.lr_scheduler}, "
            f"warm-up {recipe.train.warmup_ratio:g}",
        ),
        ("", _packing(setting)),
        ("memory", setting.memory),
    ]
    network = "no network used" if setting.source.revision is None else f"model revision {setting.source.revision[:12]}"
    title = f"simpo {simpo_cli.__version__} · train {recipe.name} · {where}, {compute} · {network}"
    return RunHeader(title, tuple(lines))


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def _packing(setting: Setting) -> str:
    """How pairs will go through the model, and what that saves."""
    pairs = setting.data.train
    if setting.packing == "padded":
        return "pairs in padded rows" + (f": {setting.why_padded}" if setting.why_padded else "")
    rows = sum(microbatch_tokens(pair, "padded") for pair in pairs)
    shared = sum(microbatch_tokens(pair, "shared_prefix") for pair in pairs)
    return f"every prompt once, no padding: {100 * (1 - shared / rows):.0f} % fewer tokens than pairs of padded rows"


def percent(share: Measured) -> str:
    """A share with its 95 % interval, such as `51.2 % (46.8 to 55.6)`."""
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"


def data_names(sources: str | list[DataSource]) -> str:
    """The paths that data.train or data.eval names, as one would type them behind `simpo stats`."""
    return sources if isinstance(sources, str) else " ".join(source.path for source in sources)
