"""run.json: what ran, on what, with what, so that the run can be told apart from every other and done again."""

import hashlib
import os
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from simpo_cli.data.store import EncodedSource
from simpo_cli.model.load import DTYPE_NAMES, ModelSource
from simpo_cli.train.checkpoint import sha256_of
from simpo_cli.train.setting import Setting

_PACKAGES = ("simpo-cli", "torch", "transformers", "tokenizers", "accelerate", "peft", "datasets", "omegaconf")


def receipt(setting: Setting, recipe_text: str, command: str) -> dict[str, Any]:
    """The content of run.json when training begins; `outcome` is added when it ends.

    records_read + repeated = trained + held_out + dropped + refused + not_reached holds for the training source when
    pairs are held out of it; with data.eval, held_out is 0 there and the evaluation source has an account of its own.
    """
    recipe, source, data, plan = setting.recipe, setting.source, setting.data, setting.plan
    held_out_of_train = len(data.held_out) if data.eval_source is None else 0
    reached = plan.num_pairs_reached
    return {
        "schema_version": 1,
        "status": "running",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "recipe_sha256": hashlib.sha256(recipe_text.encode()).hexdigest(),
        "seed": recipe.seed,
        "model": {
            "name": source.name,
            "revision": source.revision,
            "files": _model_files(source),
            "parameters": setting.parameters.total,
            "trainable_parameters": setting.parameters.trainable,
            "weights_dtype": DTYPE_NAMES[setting.weights],
        },
        "tokenizer_sha256": data.tokenizer.sha256,
        "template_sha256": hashlib.sha256(data.tokenizer.template_source.encode()).hexdigest(),
        "data": {
            "train": _source_receipt(
                data.train_source,
                trained=reached,
                held_out=held_out_of_train,
                not_reached=len(data.train) - reached,
            ),
            "eval": None if data.eval_source is None else _source_receipt(data.eval_source, scored=len(data.held_out)),
            "train_pairs_with_held_out_prompts": data.shared_prompts,
            "identity": data.identity,
        },
        "plan": {
            "steps": plan.num_steps,
            "pairs_per_step": plan.pairs_per_step,
            "tokens_per_microbatch": setting.budget,
        },
        "hardware": {
            "device": device_name(setting.accelerator.device),
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "platform": platform.platform(),
            "compute": setting.compute,
        },
    }


def command_line() -> str:
    """The command as typed, with the program's name and not its path."""
    return " ".join(["simpo", *sys.argv[1:]]) if sys.argv else "simpo"


def device_name(device: torch.device) -> str:
    """The device in words: the card's name, or the CPU with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {os.cpu_count()} cores"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _model_files(source: ModelSource) -> dict[str, str]:
    """sha256 of the weight files; those of a hub id are named by its commit instead."""
    if source.revision is not None:
        return {}
    return {file.name: sha256_of(file) for file in sorted(source.folder.glob("*.safetensors"))}


def _source_receipt(source: EncodedSource, **use: int) -> dict[str, Any]:
    account = source.account
    return {
        "decision": account.decision,
        "files": [{"path": path, "identity": identity, "size": size} for path, identity, size in account.files],
        "records_read": account.records_read,
        "repeated": source.repeated,
        **use,
        "dropped": dict(sorted(account.dropped.items())),
        "refused": len(account.refused),
        "counts": dict(sorted(account.counts.items())),
        "warnings": dict(sorted(account.warnings.items())),
        "tokens": {**asdict(source.origin), "seconds_saved": source.origin.seconds_saved},
    }
