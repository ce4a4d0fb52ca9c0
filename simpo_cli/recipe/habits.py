"""Keys that a recipe does not have: each is answered with the key that was probably meant, never ignored."""

import difflib
from dataclasses import dataclass

from simpo_cli.errors import UserError
from simpo_cli.recipe.fields import all_keys, nearest_section, schema_at, section_of
from simpo_cli.recipe.tree import Node


@dataclass(frozen=True)
class Habit:
    """What a key of other tools is called here, if there is such a key, and what to know about it."""

    key: str = ""
    note: str = ""


_STEP = "It counts the pairs of a whole step, over all devices; micro-batches are cut to the memory."
_PRECISION = "It is auto, bf16 or fp32."
_LENGTH = "It counts prompt and response together."
_LOSS = "The objective is SimPO: its loss is sigmoid or hinge."
_KERNEL = "The kernel is chosen by the device."
_ALPHA = "It weighs the likelihood of the chosen responses, which SimPO leaves at 0."
_FP16 = "It is auto, bf16 or fp32: in fp16 small gradients would be lost."
_ADAPTERS = "With it adapters are trained, without it all weights."

# Keys that people write by habit, from recipes of other tools, by what they are called here.
_CALLED: list[tuple[str, str, str]] = [
    ("lr", "train.learning_rate", ""),
    ("batch_size global_batch_size train_batch_size per_device_train_batch_size", "train.pairs_per_step", _STEP),
    ("gradient_accumulation_steps", "train.pairs_per_step", _STEP),
    ("micro_batch_size", "train.tokens_per_microbatch", ""),
    ("epochs num_train_epochs", "train.num_epochs", ""),
    ("lr_scheduler_type scheduler", "train.lr_scheduler", ""),
    ("warmup", "train.warmup_ratio", ""),
    ("optim", "train.optimizer", ""),
    ("max_norm", "train.max_grad_norm", ""),
    ("bf16 mixed_precision pure_bf16", "train.precision", _PRECISION),
    ("fp16", "train.precision", _FP16),
    ("model_name_or_path model_name base_model", "model.path", ""),
    ("torch_dtype dtype", "model.weights_dtype", ""),
    ("attn_implementation flash_attn", "model.attention", _KERNEL),
    ("lora_r r", "model.lora.rank", ""),
    ("lora_alpha", "model.lora.alpha", ""),
    ("lora_dropout", "model.lora.dropout", ""),
    ("lora_target", "model.lora.target_modules", ""),
    ("finetuning_type", "model.lora", _ADAPTERS),
    ("dataset train_file dataset_name dataset_path", "data.train", ""),
    ("eval_dataset", "data.eval", ""),
    ("max_seq_length max_completion_length", "data.max_length", _LENGTH),
    ("cutoff_len", "data.max_length", ""),
    ("template", "data.chat_template", ""),
    ("loss_type pref_loss", "loss.type", _LOSS),
    ("simpo_gamma", "loss.gamma", ""),
    ("gamma_ratio", "loss.gamma_beta_ratio", ""),
    ("pref_beta", "loss.beta", ""),
    ("cpo_alpha", "loss.sft_weight", _ALPHA),
    ("sft_alpha", "loss.sft_weight", ""),
    ("eval_steps eval_strategy evaluation_strategy", "eval.every", ""),
    ("save_steps save_strategy", "checkpoint.every", ""),
    ("save_total_limit", "checkpoint.keep", ""),
    ("load_best_model_at_end", "checkpoint.best", ""),
    ("logging_steps", "tracking.log_every", ""),
    ("run_name", "name", ""),
]
_DEVICE = (
    "The device is found by itself. In front of the command CUDA_VISIBLE_DEVICES=0 chooses a card, "
    "ACCELERATE_USE_CPU=true the CPU."
)
# Keys of other tools that there are none of here, with what to do instead.
_INSTEAD = {
    "device use_cpu no_cuda device_map": _DEVICE,
    "ref_model reference_model ref_model_path reference_free": "SimPO has no reference model: leave it out.",
    "stage do_train do_eval": "There is one method here, and it trains and evaluates: leave it out.",
    "trust_remote_code": "Code of a model is allowed on the command line: --trust-remote-code",
    "resume_from_checkpoint": "A run is resumed on the command line: simpo train RECIPE --resume",
    "overwrite_output_dir": "An existing run is set aside on the command line: simpo train RECIPE --fresh",
    "push_to_hub": "A finished run is sent to the hub by: simpo export RUN --push ORG/NAME",
    "packing": "Pairs are packed by themselves: leave it out.",
    "remove_unused_columns": "Fields that are not used are named on the first screen: leave it out.",
}
HABITS = {name: Habit(key, note) for names, key, note in _CALLED for name in names.split()}
HABITS |= {name: Habit(note=note) for names, note in _INSTEAD.items() for name in names.split()}


def unknown_key(path: tuple[str, ...], node: Node) -> UserError:
    """The error for a key that its section does not have, with the key that was probably meant."""
    *above, key = path
    prefix, full = ".".join(above), ".".join(path)
    section = section_of(schema_at(tuple(above))) or {}
    known = list(section["properties"])
    listing = f"All keys: simpo recipe schema {nearest_section(tuple(above))}".rstrip()
    problem = f"{_shown(full)} is not a key of {prefix or 'a recipe'}"
    flat = key.replace("-", "_").lower()
    habit = HABITS.get(flat)
    if habit is None and (meant := _nearest(key, known)):
        fix = f"Did you mean {meant}? {listing}"
    elif path[0] == "data" and key in (section_of(schema_at(("data", "train"))) or {})["properties"]:
        fix = f"It belongs to a source: data.train: [{{path: ..., {key}: ...}}]"
    else:
        habit = habit or Habit(" or ".join(name for name in all_keys() if name.rpartition(".")[2] == flat))
        if habit.key:
            fix = " ".join(filter(None, (f"Did you mean {habit.key}?", habit.note, listing)))
        else:
            fix = habit.note or listing
            problem += "" if habit.note else f"; it has {', '.join(known)}"
    return UserError(f"{problem}.", fix, where=node.origin.where, key=full)


def unknown_part(path: tuple[str, ...], known: list[str], node: Node) -> UserError:
    """The error for a key that a mapping such as `columns` does not have."""
    *above, key = path
    meant = _nearest(key, known)
    fix = f"Did you mean {meant}?" if meant else f"It has {', '.join(known)}."
    return UserError(f"{'.'.join(above)} has no part {_shown(key)}.", fix, where=node.origin.where, key=".".join(path))


def _shown(key: str) -> str:
    return key if key.isprintable() and len(key) <= 80 else repr(key)[:80]


def _nearest(key: str, known: list[str]) -> str:
    flat = key.replace("-", "_").replace(" ", "_").lower()
    return next(iter([flat] if flat in known else difflib.get_close_matches(flat, known, n=1, cutoff=0.7)), "")
