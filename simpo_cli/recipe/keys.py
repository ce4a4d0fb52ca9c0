"""Keys that a layer may hold. An unknown one is never ignored: it gets the key that was probably meant."""

import difflib
from dataclasses import dataclass
from typing import Any

from simpo_cli.errors import UserError
from simpo_cli.recipe.kinds import Kind, all_keys, fields_of, nearest_section
from simpo_cli.recipe.schema import DataSource, Recipe
from simpo_cli.recipe.tree import ListNode, MappingNode, Node, ScalarNode

# Names that other tools give to what we have under another name.
ELSEWHERE = {
    "lr": "train.learning_rate",
    "batch_size": "train.pairs_per_step",
    "global_batch_size": "train.pairs_per_step",
    "train_batch_size": "train.pairs_per_step",
    "per_device_train_batch_size": "train.pairs_per_step",
    "gradient_accumulation_steps": "train.pairs_per_step",
    "micro_batch_size": "train.tokens_per_microbatch",
    "epochs": "train.num_epochs",
    "num_train_epochs": "train.num_epochs",
    "lr_scheduler_type": "train.lr_scheduler",
    "scheduler": "train.lr_scheduler",
    "warmup": "train.warmup_ratio",
    "optim": "train.optimizer",
    "max_norm": "train.max_grad_norm",
    "bf16": "train.precision",
    "mixed_precision": "train.precision",
    "model_name_or_path": "model.path",
    "model_name": "model.path",
    "base_model": "model.path",
    "torch_dtype": "model.weights_dtype",
    "dtype": "model.weights_dtype",
    "lora_r": "model.lora.rank",
    "r": "model.lora.rank",
    "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout",
    "lora_target": "model.lora.target_modules",
    "dataset": "data.train",
    "train_file": "data.train",
    "dataset_name": "data.train",
    "eval_dataset": "data.eval",
    "max_seq_length": "data.max_length",
    "cutoff_len": "data.max_length",
    "template": "data.chat_template",
    "loss_type": "loss.type",
    "simpo_gamma": "loss.gamma",
    "gamma_ratio": "loss.gamma_beta_ratio",
    "pref_beta": "loss.beta",
    "cpo_alpha": "loss.sft_weight",
    "sft_alpha": "loss.sft_weight",
    "eval_steps": "eval.every",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "load_best_model_at_end": "checkpoint.best",
    "logging_steps": "tracking.log_every",
    "run_name": "name",
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
    if meant := _meant_here(key, known):
        return UserError(f"{shown} {whole}.", f"Did you mean {meant}? All keys: {listing}", where=node.origin.where)
    if path[:1] == ("data",) and key in fields_of(DataSource):
        fix = f"It belongs to a source: data.train: [{{path: ..., {key}: ...}}]"
        return UserError(f"{shown} {whole}.", fix, where=node.origin.where)
    homes = [full for full in all_keys() if full.rpartition(".")[2] == key.replace("-", "_").lower()]
    if homes or key.lower() in ELSEWHERE:
        meant = " or ".join(homes) if homes else ELSEWHERE[key.lower()]
        return UserError(f"{shown} {whole}.", f"Did you mean {meant}? All keys: {listing}", where=node.origin.where)
    return UserError(f"{shown} {whole}; it has {', '.join(known)}.", f"All keys: {listing}", where=node.origin.where)


def _meant_here(key: str, known: list[str]) -> str:
    flat = key.replace("-", "_").replace(" ", "_").lower()
    if flat in known:
        return flat
    close = difflib.get_close_matches(flat, known, n=1, cutoff=0.7)
    return close[0] if close else ""
