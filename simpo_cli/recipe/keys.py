"""Keys that a layer may hold. An unknown one is never ignored: it gets the key that was probably meant."""

import difflib
from dataclasses import dataclass
from typing import Any

from simpo_cli.errors import UserError
from simpo_cli.recipe.kinds import Kind, all_keys, fields_of, nearest_section
from simpo_cli.recipe.schema import DataSource, Recipe
from simpo_cli.recipe.tree import ListNode, MappingNode, Node, ScalarNode


@dataclass(frozen=True)
class Habit:
    """What a key of other tools is called here, if there is such a key, and what to know about it."""

    key: str = ""
    note: str = ""


_DEVICE = (
    "The device is found by itself. In front of the command CUDA_VISIBLE_DEVICES=0 chooses a card, "
    "ACCELERATE_USE_CPU=true the CPU."
)
_REFERENCE = "SimPO has no reference model: leave it out."
_ONE_METHOD = "There is one method here, and it trains and evaluates: leave it out."
_STEP = "It counts the pairs of a whole step, over all devices; micro-batches are cut to the memory."
_PRECISION = "It is auto, bf16 or fp32."
_LENGTH = "It counts prompt and response together."
_LOSS = "The objective is SimPO: its loss is sigmoid or hinge."
_KERNEL = "The kernel is chosen by the device."

# Keys that people write by habit, from recipes of other tools.
HABITS = {
    "lr": Habit("train.learning_rate"),
    "batch_size": Habit("train.pairs_per_step", _STEP),
    "global_batch_size": Habit("train.pairs_per_step", _STEP),
    "train_batch_size": Habit("train.pairs_per_step", _STEP),
    "per_device_train_batch_size": Habit("train.pairs_per_step", _STEP),
    "gradient_accumulation_steps": Habit("train.pairs_per_step", _STEP),
    "micro_batch_size": Habit("train.tokens_per_microbatch"),
    "epochs": Habit("train.num_epochs"),
    "num_train_epochs": Habit("train.num_epochs"),
    "lr_scheduler_type": Habit("train.lr_scheduler"),
    "scheduler": Habit("train.lr_scheduler"),
    "warmup": Habit("train.warmup_ratio"),
    "optim": Habit("train.optimizer"),
    "max_norm": Habit("train.max_grad_norm"),
    "bf16": Habit("train.precision", _PRECISION),
    "mixed_precision": Habit("train.precision", _PRECISION),
    "model_name_or_path": Habit("model.path"),
    "model_name": Habit("model.path"),
    "base_model": Habit("model.path"),
    "torch_dtype": Habit("model.weights_dtype"),
    "dtype": Habit("model.weights_dtype"),
    "lora_r": Habit("model.lora.rank"),
    "r": Habit("model.lora.rank"),
    "lora_alpha": Habit("model.lora.alpha"),
    "lora_dropout": Habit("model.lora.dropout"),
    "lora_target": Habit("model.lora.target_modules"),
    "dataset": Habit("data.train"),
    "train_file": Habit("data.train"),
    "dataset_name": Habit("data.train"),
    "eval_dataset": Habit("data.eval"),
    "max_seq_length": Habit("data.max_length", _LENGTH),
    "cutoff_len": Habit("data.max_length"),
    "template": Habit("data.chat_template"),
    "loss_type": Habit("loss.type", _LOSS),
    "simpo_gamma": Habit("loss.gamma"),
    "gamma_ratio": Habit("loss.gamma_beta_ratio"),
    "pref_beta": Habit("loss.beta"),
    "cpo_alpha": Habit("loss.sft_weight", "It weighs the likelihood of the chosen responses, which SimPO leaves at 0."),
    "sft_alpha": Habit("loss.sft_weight"),
    "eval_steps": Habit("eval.every"),
    "save_steps": Habit("checkpoint.every"),
    "save_total_limit": Habit("checkpoint.keep"),
    "load_best_model_at_end": Habit("checkpoint.best"),
    "logging_steps": Habit("tracking.log_every"),
    "run_name": Habit("name"),
    "fp16": Habit("train.precision", "It is auto, bf16 or fp32: in fp16 small gradients would be lost."),
    "pure_bf16": Habit("train.precision", _PRECISION),
    "max_completion_length": Habit("data.max_length", _LENGTH),
    "pref_loss": Habit("loss.type", _LOSS),
    "finetuning_type": Habit("model.lora", "With it adapters are trained, without it all weights."),
    "eval_strategy": Habit("eval.every"),
    "evaluation_strategy": Habit("eval.every"),
    "save_strategy": Habit("checkpoint.every"),
    "attn_implementation": Habit("model.attention", _KERNEL),
    "flash_attn": Habit("model.attention", _KERNEL),
    "dataset_path": Habit("data.train"),
    "device": Habit(note=_DEVICE),
    "use_cpu": Habit(note=_DEVICE),
    "no_cuda": Habit(note=_DEVICE),
    "device_map": Habit(note=_DEVICE),
    "ref_model": Habit(note=_REFERENCE),
    "reference_model": Habit(note=_REFERENCE),
    "ref_model_path": Habit(note=_REFERENCE),
    "reference_free": Habit(note=_REFERENCE),
    "trust_remote_code": Habit(note="Code of a model is allowed on the command line: --trust-remote-code"),
    "resume_from_checkpoint": Habit(note="A run is resumed on the command line: simpo train RECIPE --resume"),
    "overwrite_output_dir": Habit(note="An existing run is set aside on the command line: simpo train RECIPE --fresh"),
    "push_to_hub": Habit(note="A finished run is sent to the hub by: simpo export RUN --push ORG/NAME"),
    "stage": Habit(note=_ONE_METHOD),
    "do_train": Habit(note=_ONE_METHOD),
    "do_eval": Habit(note=_ONE_METHOD),
    "packing": Habit(note="Pairs are packed by themselves: leave it out."),
    "remove_unused_columns": Habit(note="Fields that are not used are named on the first screen: leave it out."),
}


@dataclass(frozen=True)
class Problem:
    """Something wrong with a recipe. Several are collected, so that a check can show them all."""

    error: UserError
    missing_key: str = ""  # the required key that is not given, when that is what is wrong


def drop_unknown(tree: MappingNode) -> tuple[MappingNode, list[Problem]]:
    """The layer without its unknown keys, and a problem for each."""
    problems: list[Problem] = []
    return _known(tree, Recipe, (), problems), problems


def _known(tree: MappingNode, section: type[Any], path: tuple[str, ...], problems: list[Problem]) -> MappingNode:
    fields = fields_of(section)
    kept: dict[str, Node] = {}
    for key, node in tree.items.items():
        if key in fields and _is_empty_section(node, fields[key]):
            continue  # `loss:` with every line below it commented out
        if key in fields:
            kept[key] = _known_below(node, fields[key], (*path, key), problems)
        else:
            problems.append(Problem(unknown_key(key, section, path, node)))
    return MappingNode(kept, tree.origin)


def _is_empty_section(node: Node, kind: Kind) -> bool:
    return kind.section is not None and not kind.nullable and isinstance(node, ScalarNode) and node.value is None


def _known_below(node: Node, kind: Kind, path: tuple[str, ...], problems: list[Problem]) -> Node:
    if kind.section is not None and isinstance(node, MappingNode):
        return _known(node, kind.section, path, problems)
    if kind.items is not None and kind.items.section is not None:
        section = kind.items.section
        if isinstance(node, ListNode):
            items = [
                _known(item, section, (*path, str(index)), problems) if isinstance(item, MappingNode) else item
                for index, item in enumerate(node.items)
            ]
            return ListNode(items, node.origin)
        if isinstance(node, MappingNode) and node.items and all(key.isdigit() for key in node.items):
            patched: dict[str, Node] = {
                key: _known(item, section, (*path, key), problems) if isinstance(item, MappingNode) else item
                for key, item in node.items.items()
            }
            return MappingNode(patched, node.origin)
    if kind.keys and isinstance(node, MappingNode):
        kept: dict[str, Node] = {}
        for key, item in node.items.items():
            if key in kind.keys:
                assert kind.values is not None
                kept[key] = _known_below(item, kind.values, (*path, key), problems)
            else:
                problems.append(Problem(_unknown_part(key, kind.keys, path, item)))
        return MappingNode(kept, node.origin)
    return node


def _unknown_part(key: str, known: tuple[str, ...], path: tuple[str, ...], node: Node) -> UserError:
    """The error for a key that a mapping such as `columns` does not have."""
    shown = key if key.isprintable() and len(key) <= 80 else repr(key)[:80]
    meant = _meant_here(key, list(known))
    fix = f"Did you mean {meant}?" if meant else f"It has {', '.join(known)}."
    return UserError(f"{'.'.join(path)} has no part {shown}.", fix, where=node.origin.where)


def unknown_key(key: str, section: type[Any], path: tuple[str, ...], node: Node) -> UserError:
    """The error for a key that its section does not have, with the key that was probably meant."""
    prefix = ".".join(path)
    name = f"{prefix}.{key}" if path else key
    shown = name if name.isprintable() and len(name) <= 80 else repr(name)[:80]
    whole = f"is not a key of {prefix}" if path else "is not a key of a recipe"
    known = list(fields_of(section))
    listing = f"simpo recipe schema {nearest_section(path)}".rstrip()
    habit = HABITS.get(key.replace("-", "_").lower())
    if habit is None and (meant := _meant_here(key, known)):
        return UserError(f"{shown} {whole}.", f"Did you mean {meant}? All keys: {listing}", where=node.origin.where)
    if path[:1] == ("data",) and key in fields_of(DataSource):
        fix = f"It belongs to a source: data.train: [{{path: ..., {key}: ...}}]"
        return UserError(f"{shown} {whole}.", fix, where=node.origin.where)
    homes = [full for full in all_keys() if full.rpartition(".")[2] == key.replace("-", "_").lower()]
    habit = habit or Habit()
    meant = habit.key or " or ".join(homes)
    if meant or habit.note:
        asked = f"Did you mean {meant}?" if meant else ""
        fix = " ".join(part for part in (asked, habit.note, f"All keys: {listing}" if meant else "") if part)
        return UserError(f"{shown} {whole}.", fix, where=node.origin.where)
    return UserError(f"{shown} {whole}; it has {', '.join(known)}.", f"All keys: {listing}", where=node.origin.where)


def _meant_here(key: str, known: list[str]) -> str:
    flat = key.replace("-", "_").replace(" ", "_").lower()
    if flat in known:
        return flat
    close = difflib.get_close_matches(flat, known, n=1, cutoff=0.7)
    return close[0] if close else ""
