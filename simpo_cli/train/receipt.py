"""run.json: what ran, on what, with what, so that the run can be told apart from every other and done again."""

import hashlib
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from simpo_cli.data.file_bytes import sha256_of
from simpo_cli.data.store import EncodedSource
from simpo_cli.model.fused.liger import liger_version
from simpo_cli.model.load import DTYPE_NAMES, ModelSource
from simpo_cli.recipe import ComposedRecipe
from simpo_cli.redaction import redacted_values, told_apart
from simpo_cli.stages import stage
from simpo_cli.train.health.watch import Alert
from simpo_cli.train.identity import Identity, recipe_values
from simpo_cli.train.ledger import Ledger, eval_ledger, train_ledger
from simpo_cli.train.run_folder import RUN, RunFolder
from simpo_cli.train.seal import REOPENED, SEAL, sealed
from simpo_cli.train.setting import Setting
from simpo_cli.train.shapes import SCHEMA_VERSION

_PACKAGES = (
    "simpo-cli",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "liger-kernel",
    "datasets",
    "omegaconf",
)


class RunReceipt:
    """run.json, written anew whenever there is something to say: at the start, at every save, at the end.

    Args:
        folder: the run's folder.
        setting: the run.
        content: what does not change while this process trains.
    """

    def __init__(self, folder: RunFolder, setting: Setting, content: dict[str, Any]) -> None:
        self._folder, self.setting, self.content = folder, setting, content

    def write(self, status: str, steps_done: int, alerts: Sequence[Alert], **more: Any) -> None:
        """Say how far the run is.

        Args:
            status: running, done, stopped (by a signal or for its health, everything saved) or failed.
            steps_done: steps that are saved; the account of the records is of these.
            alerts: what was seen of the run's health.
            more: such as outcome, and the files of a run that is done.
        """
        setting = self.setting
        data = setting.data
        train = train_ledger(data, setting.plan, steps_done)
        accounts = {"train": _source_receipt(data.train_source, train), "eval": None}
        if data.eval_source is not None:
            accounts["eval"] = _source_receipt(data.eval_source, eval_ledger(data.eval_source))
        document = {
            "schema_version": SCHEMA_VERSION,
            "status": status,
            "step": steps_done,
            **self.content,
            "data": {
                **accounts,
                "train_pairs_with_held_out_prompts": data.shared_prompts,
                "identity": data.identity,
            },
            "health": [{**asdict(alert), "remedy": alert.remedy} for alert in alerts],
            **more,
        }
        self._folder.write_json(RUN, sealed(redacted_values(document)))  # the hash is of what is written


def reopen(folder: RunFolder, document: Mapping[str, Any], composed: ComposedRecipe) -> None:
    """Say in run.json that the run is gone on with, before anything changes that it vouches for.

    A process that is killed before it writes run.json anew leaves the recipe of before or that of now, and logs behind
    the end that run.json tells of: both are as they should be. What the run was worth until then stays told.

    Args:
        folder: the run's folder.
        document: run.json as it is; empty where there is none.
        composed: the recipe of now.
    """
    if document:
        kept = {name: value for name, value in document.items() if name != SEAL}
        reopened = [*document.get(REOPENED, []), _recipe_sha256(composed)]
        folder.write_json(RUN, sealed(redacted_values({**kept, REOPENED: reopened})))


def receipt(setting: Setting, composed: ComposedRecipe, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json says from the start on.

    Args:
        setting: the run.
        composed: the recipe with the origin of every value.
        earlier: run.json of a run that is gone on with: when and how it began stays as it was; else empty.
    """
    recipe, source, data, plan = setting.recipe, setting.source, setting.data, setting.plan
    return {
        "started": earlier.get("started", now()),
        "command": earlier.get("command", command_line()),
        "versions": _versions(),
        "recipe_sha256": _recipe_sha256(composed),
        "recipe_origins": {  # where each value was set; what is not here is a default
            key: str(origin) for key, origin in composed.origins.items() if not origin.is_default
        },
        "seed": recipe.seed,
        "quick": setting.quick,
        "model": {
            "name": source.name,
            "revision": source.revision,
            "files": _model_files(source),
            "code": dict(source.code),
            "parameters": setting.parameters.total,
            "trainable_parameters": setting.parameters.trainable,
            "weights_dtype": DTYPE_NAMES[setting.weights],
        },
        "tokenizer_sha256": data.tokenizer.sha256,
        "template_sha256": hashlib.sha256(data.tokenizer.template_source.encode()).hexdigest(),
        "template_dates": data.tokenizer.dates,
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
        "resumed": list(earlier.get("resumed", [])),
    }


def identity(setting: Setting, content: Mapping[str, Any]) -> Identity:
    """What a later process must share with this run, drawn from its receipt.

    Args:
        setting: the run, with the packing and the budget that it really uses.
        content: of `receipt`.
    """
    recipe, data = setting.recipe, setting.data
    model = {name: content["model"][name] for name in ("revision", "files", "code")}
    if not model["code"]:
        del model["code"]  # as in checkpoints of before there was any
    plan: dict[str, Any] = {
        "train_pairs": len(data.train),
        "held_out_pairs": len(data.held_out),
        "tokens": data.identity,
    }
    if data.tokenizer.dates:
        plan["rendered_at"] = data.tokenizer.moment.isoformat()
    versions = {name: content["versions"][name] for name in ("simpo-cli", "torch", "transformers", "peft")}
    on_card = setting.accelerator.device.type == "cuda"
    return Identity(
        recipe={key: told_apart(v) if isinstance(v, str) else v for key, v in recipe_values(recipe).items()},
        data={
            "train": _files(data.train_source),
            "eval": None if data.eval_source is None else _files(data.eval_source),
        },
        model=model,
        tokenizer=content["tokenizer_sha256"],
        template=content["template_sha256"],
        plan=plan,
        machine={
            **versions,
            **{name: content["hardware"][name] for name in ("device", "threads", "cpu_capability", "compute")},
            "packing": setting.packing,
            "liger": liger_version()
            if on_card and setting.packing == "shared_prefix" and not setting.compiled
            else None,
            **({"compiled": True} if setting.compiled else {}),  # else as in checkpoints of before there was any
            "tokens_per_microbatch": setting.budget,
            "gradient_checkpointing": setting.checkpointing,
            "deterministic": recipe.train.deterministic,
        },
    )


def command_line() -> str:
    """The command as typed, with the program's name and not its path."""
    return shlex.join(["simpo", *sys.argv[1:]])


def command_to_resume() -> str:
    """The same command, to go on with the run."""
    typed = [word for word in sys.argv[1:] if word not in ("--fresh", "--resume")]
    return shlex.join(["simpo", *typed, "--resume"])


def device_name(device: torch.device) -> str:
    """The device in words: the card's name, or the CPU with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {os.cpu_count()} cores"


def now() -> str:
    """This moment, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _recipe_sha256(composed: ComposedRecipe) -> str:
    """Of the bytes of recipe.yaml."""
    return hashlib.sha256(composed.as_yaml().encode()).hexdigest()


def _versions() -> dict[str, str | None]:
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@stage("hashing the files of the model")
def _model_files(source: ModelSource) -> dict[str, str]:
    """sha256 of the weight files, with those of the model below an adapter; a hub id is named by its commit instead."""
    if source.revision is not None:
        return {}
    files = {file.name: sha256_of(file) for file in sorted(source.folder.glob("*.safetensors"))}
    if source.adapter_base is not None:
        files |= {f"base/{name}": digest for name, digest in _model_files(source.adapter_base).items()}
    return files


def _files(source: EncodedSource) -> list[tuple[str, str]]:
    return [(path, content) for path, content, _ in source.account.files]


def _source_receipt(source: EncodedSource, records: Ledger) -> dict[str, Any]:
    account = source.account
    return {
        "decision": account.decision,
        "files": [{"path": path, "identity": identity, "size": size} for path, identity, size in account.files],
        "records": records.as_json(),
        "counts": dict(sorted(account.counts.items())),
        "warnings": dict(sorted(account.warnings.items())),
        "tokens": {**asdict(source.origin), "seconds_saved": source.origin.seconds_saved},
    }
