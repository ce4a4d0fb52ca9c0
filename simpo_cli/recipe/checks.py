"""What a recipe allows and experience advises against. Codes are stable: people silence and search for them."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import Recipe
from simpo_cli.recipe.tree import Node, lookup

HIGHEST_FULL_LEARNING_RATE = 5e-6
MOST_LORA_PAIRS = 128
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query_key_value", "c_attn", "out_proj"}
_DEVICE = re.compile(r"(con|prn|aux|nul|com[1-9]|lpt[1-9])(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    """One remark on a recipe. A warning does not stop a run; an error does."""

    code: str  # REC001
    severity: Literal["note", "warning", "error"]
    where: str  # run.yaml:7, override 2, or the recipe's name
    sentence: str
    fix: str = ""


def warnings_of(recipe: Recipe, tree: Node, display: str) -> list[Finding]:
    """Every remark that the text of a recipe calls for."""
    found: list[Finding] = []

    def warn(code: str, keys: str, sentence: str) -> None:
        found.append(Finding(code, "warning", place_of(tree, keys.split(), display), sentence))

    model, data, loss, train = recipe.model, recipe.data, recipe.loss, recipe.train
    full_tuning, builtin = model.lora is None, model.path.startswith("builtin:")
    rate = f"{train.learning_rate:g}".replace("e-0", "e-")
    if full_tuning and not builtin and train.learning_rate > HIGHEST_FULL_LEARNING_RATE:
        warn(
            "REC001",
            "train.learning_rate model.lora",
            f"train.learning_rate is {rate} for full tuning: outputs are known to degenerate above 5e-6.",
        )
    if loss.margin_beta_ratio > 2:
        warn(
            "REC002",
            "loss.gamma loss.gamma_beta_ratio loss.beta",
            f"gamma/beta is {loss.margin_beta_ratio:g} (gamma {loss.margin:g}, beta {loss.beta:g}): a response would"
            " have to be more than 2 nats per token likelier. SimPO's authors use 0.1 to 0.8.",
        )
    if loss.beta < 1:
        warn(
            "REC003",
            "loss.beta",
            f"loss.beta is {loss.beta:g}, a value for DPO. SimPO's authors use 2 to 10;"
            f" gamma {loss.margin:g} makes gamma/beta {loss.margin_beta_ratio:g}.",
        )
    if train.pairs_per_step < 8:
        warn(
            "REC004",
            "train.pairs_per_step",
            f"train.pairs_per_step is {train.pairs_per_step}: steps this small are noisy. SimPO's authors use 128.",
        )
    if full_tuning and model.weights_dtype == "fp16":
        warn(
            "REC005",
            "model.weights_dtype",
            "model.weights_dtype is fp16 for full tuning: most updates are smaller than the last digit of such a weight"
            f" and are lost at learning rate {rate}. Use fp32, bf16, which is rounded stochastically, or adapters.",
        )
    if model.lora is not None and model.lora.dropout > 0:
        warn(
            "REC006",
            "model.lora.dropout",
            f"model.lora.dropout is {model.lora.dropout:g}: the result of a step then depends on how it is cut up, and"
            " chosen and rejected are scored by different networks. SimPO is run with 0.",
        )
    steps = train.max_steps
    if steps is not None and train.warmup_ratio > 0 and math.ceil(train.warmup_ratio * steps) >= steps:
        warn(
            "REC007",
            "train.max_steps train.warmup_ratio",
            f"the warm-up fills the whole run (train.max_steps is {steps}) and begins at learning rate 0:"
            " next to nothing is learned. Set train.warmup_ratio to 0 for very short runs.",
        )
    for key, every in (("checkpoint.every", recipe.checkpoint.every), ("eval.every", recipe.eval.every)):
        if steps is not None and every is not None and every > steps:
            warn(
                "REC008",
                f"{key} train.max_steps",
                f"{key} is {every}, longer than the run of {steps} steps: it never comes due before the end.",
            )
    if steps is not None and _layer_of(tree, "train.max_steps") == _layer_of(tree, "train.num_epochs"):
        warn(
            "REC014",
            "train.max_steps",
            f"train.max_steps is {steps} and train.num_epochs {train.num_epochs:g}: the run ends at the earlier of the"
            " two, and so does its schedule.",
        )
    for key, folder in (("name", recipe.name), ("output_dir", recipe.output_dir)):
        if part := _reserved(folder):
            warn("REC015", key, f"{key} has the part {part!r}: Windows takes it for a device, or drops its end.")
            break  # output_dir mostly repeats the name
    if model.lora is not None and train.learning_rate <= HIGHEST_FULL_LEARNING_RATE:
        warn(
            "REC009",
            "train.learning_rate model.lora model.lora.rank",
            f"train.learning_rate is {rate}, a value for full tuning: adapters hardly move at it. 1e-5 or more is"
            " usual; the pieces lora and qlora set it where no later file does.",
        )
    if model.lora is not None and train.pairs_per_step > MOST_LORA_PAIRS:
        warn(
            "REC016",
            "train.pairs_per_step model.lora",
            f"train.pairs_per_step is {train.pairs_per_step}: adapters lose more by large steps than full tuning does."
            f" {MOST_LORA_PAIRS} or fewer is usual.",
        )
    if model.lora is not None and _ATTENTION.issuperset(model.lora.target_modules):
        warn(
            "REC017",
            "model.lora.target_modules",
            "model.lora.target_modules names layers of the attention alone: adapters on all linear layers learn more,"
            " at equal size. Leave it at all-linear.",
        )
    if data.eval is None and data.holdout == 0:
        warn("REC010", "data.holdout data", "no pairs are held out: nothing will tell whether the model got better.")
    trained = [(source.path, source.split) for source in data.train]
    for source in data.eval or ():
        if not source.path.startswith("builtin:") and (source.path, source.split) in trained:  # builtin: pairs for both
            both = f"{source.path} is in data.train and in data.eval"
            warn("REC011", "data.eval", f"{both}: the model is tested on what it learned.")
            break
    return found


def place_of(tree: Node, keys: list[str], display: str) -> str:
    """The first of the keys that somebody wrote, else the recipe itself."""
    for key in keys:
        node = lookup(tree, tuple(key.split(".")))
        if node is not None and not node.origin.is_default:
            return node.origin.where
    return display


def _layer_of(tree: Node, key: str) -> str:
    """The file, or the command line, that set a key last."""
    return re.sub(r"[: ]\d+$", "", place_of(tree, [key], f"nothing sets {key}"))


def _reserved(path: str) -> str:
    """The part of a path that Windows does not keep as a name; empty if there is none."""
    for part in path.replace("\\", "/").split("/"):
        if _DEVICE.fullmatch(part) or (part.strip(".") and part[-1] in ". "):
            return part
    return ""


def refuse_output_in_input(recipe: Recipe, tree: Node, display: str) -> None:
    """The run folder may not lie in the folder of the model or of the data: both would change while they are read."""
    output = _absolute(recipe.output_dir)
    inputs = [("model.path", recipe.model.path)]
    inputs += [("data.train", source.path) for source in recipe.data.train]
    inputs += [("data.eval", source.path) for source in recipe.data.eval or ()]
    where = place_of(tree, ["output_dir", "name"], display)
    for key, text in inputs:
        if text.startswith("builtin:"):
            continue
        folder = _absolute(text)
        if folder == output or (folder.is_dir() and output.is_relative_to(folder)):
            raise UserError(
                f"output_dir is {recipe.output_dir}, inside {key} ({text}).",
                "Write the run elsewhere, for example output_dir=runs/NAME.",
                where=where,
            )
    if output.exists() and not output.is_dir():
        raise UserError(f"output_dir is {recipe.output_dir}, which is a file.", "Name a folder.", where=where)


def refuse_mixed_optimizer(recipe: Recipe, tree: Node, display: str) -> None:
    """8-bit moments of narrow weights are torchao's, which rounds only bf16 stochastically and has no pages."""
    optimizer, dtype = recipe.train.optimizer, recipe.model.weights_dtype
    if recipe.model.lora is not None or optimizer == "adamw" or dtype not in ("bf16", "fp16"):
        return
    why = {
        "fp16": "fp16 weights lose small updates to their rounding, and 8-bit moments are for fp32 and bf16 weights",
        "bf16": "the 8-bit moments of bf16 weights are torchao's, which have no pages",
    }
    if dtype == "fp16" or optimizer == "paged_adamw_8bit":
        raise UserError(
            f"train.optimizer is {optimizer}, and model.weights_dtype {dtype} for full tuning: {why[dtype]}.",
            "Set model.weights_dtype to bf16 and train.optimizer to adamw_8bit, or model.weights_dtype to fp32.",
            where=place_of(tree, ["train.optimizer", "model.weights_dtype"], display),
            key="train.optimizer",
        )


def _absolute(text: str) -> Path:
    return Path(os.path.realpath(os.path.expanduser(text)))
