"""What is decided before the weights are read: every check that can fail early fails here."""

import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from simpo_cli.data.encode import AS_TRANSCRIPT
from simpo_cli.data.file_bytes import sha256_of
from simpo_cli.data.pair import EncodedPair, cut_warnings
from simpo_cli.data.plan import Packing, Plan, row_tokens_of_each, tokens_of_each
from simpo_cli.data.prepare import PreparedData, make_plan, prepare_data, require_budget
from simpo_cli.distributed import ranks
from simpo_cli.errors import UserError, about
from simpo_cli.model.activations import require_offloadable
from simpo_cli.model.attention.interface import why_not_shared
from simpo_cli.model.backend import available_bytes, multiplies_in_bf16
from simpo_cli.model.device import Precision, device_name, device_type, open_accelerator, untried
from simpo_cli.model.fused_layers import liger_version
from simpo_cli.model.load import ParameterCounts, count_parameters
from simpo_cli.model.memory import (
    MemoryNeed,
    Strategy,
    Workload,
    choose_budget,
    is_worth_checkpointing,
    require_memory,
)
from simpo_cli.model.moments import package_of
from simpo_cli.model.rounding import export_dtype
from simpo_cli.model.source import (
    DTYPE_NAMES,
    ModelSource,
    choose_adapter,
    require_known_ids,
    require_lengths,
    require_trainable,
    start_model,
    trained_dtype,
    weights_dtype,
)
from simpo_cli.publish.export import keeps_merged
from simpo_cli.recipe.composition import ComposedRecipe
from simpo_cli.recipe.schema import Recipe
from simpo_cli.recipe.tree import recipe_values
from simpo_cli.redaction import told_apart
from simpo_cli.run.folder import left_budget, require_free_space, saved_bytes
from simpo_cli.run.receipt import Identity, command_line, now, recipe_sha256
from simpo_cli.stages import stage
from simpo_cli.train.observers import require_trackers
from simpo_cli.train.optimizer import require_optimizer, state_size
from simpo_cli.train.strategy import strategy_of
from simpo_cli.versions import installed_version

PACKAGES = (
    *("simpo-cli", "torch", "transformers", "tokenizers", "accelerate"),
    *("peft", "liger-kernel", "datasets", "omegaconf", "bitsandbytes", "torchao"),
)
QUICK = "--quick"
"""Why a smoke run has no numbers, wherever they would stand."""


@dataclass(frozen=True)
class RunPlan:
    """A run as it is prepared before the weights are read."""

    recipe: Recipe  # with what the start model's adapter decides
    source: ModelSource
    parameters: ParameterCounts
    weights: torch.dtype
    compute: Precision
    data: PreparedData
    plan: Plan
    strategy: Strategy  # how the policy is spread over the ranks
    num_ranks: int  # processes that train
    packing: Packing  # what the self-check will try
    why_padded: str | None  # what is known to speak against sharing prompts
    checkpointing: bool  # whether layers are computed again in the backward pass
    compiled: bool  # as the resumed run was; the check of the layers decides
    budget: int  # most tokens of a micro-batch
    need: MemoryNeed  # as predicted
    memory: str
    accelerator: Accelerator
    notes: Sequence[str]  # what a person should read once, and what stops nothing
    quick: bool  # a smoke run: nothing is evaluated, and no prompt is answered

    @property
    def evaluated(self) -> Sequence[EncodedPair]:
        """The pairs that the run is evaluated on: those held out, and none of a smoke run."""
        return [] if self.quick else self.data.held_out

    def receipt(self, composed: ComposedRecipe, earlier: Mapping[str, Any]) -> dict[str, Any]:
        """What run.json says of the run from the start on.

        Args:
            earlier: run.json of a run that is resumed: when and how it began stays as it was; else empty.
        """
        source, plan, tokenizer = self.source, self.plan, self.data.tokenizer
        return {
            "started": earlier.get("started", now()),
            "command": earlier.get("command", command_line()),
            "versions": {"python": platform.python_version(), **{name: installed_version(name) for name in PACKAGES}},
            "recipe_sha256": recipe_sha256(composed),
            "recipe_origins": {  # where each value was set; what is not here is a default
                key: str(origin) for key, origin in composed.origins.items() if not origin.is_default
            },
            "seed": composed.recipe.seed,
            "quick": self.quick,
            "model": {
                "name": source.name,
                "revision": source.revision,
                "files": _model_files(source),
                "code": dict(source.code),
                "parameters": self.parameters.total,
                "trainable_parameters": self.parameters.trainable,
                "weights_dtype": DTYPE_NAMES[self.weights],
                "quantization": source.quantization,
            },
            "tokenizer_sha256": tokenizer.sha256,
            "template_sha256": hashlib.sha256(tokenizer.template_source.encode()).hexdigest(),
            "template_dates": tokenizer.dates,
            "plan": {
                "steps": plan.num_steps,
                "pairs_per_step": plan.pairs_per_step,
                "tokens_per_microbatch": self.budget,
                "memory": earlier.get("plan", {}).get("memory"),  # as it was measured when the run began
            },
            "hardware": {
                "device": device_name(self.accelerator.device),
                "threads": torch.get_num_threads(),
                "cpu_capability": torch.backends.cpu.get_cpu_capability(),
                "platform": platform.platform(),
                "compute": self.compute,
                "processes": self.num_ranks,
                "strategy": self.strategy,
            },
            "resumed": list(earlier.get("resumed", [])),
        }

    def identity(self, content: Mapping[str, Any]) -> Identity:
        """What a later process must share with this run.

        Args:
            content: of `receipt`; packing, budget and compiling are those of this plan, as they really are used.
        """
        data = self.data
        # what is left out where there is none is not in checkpoints of before there was any either
        model = {name: content["model"][name] for name in ("revision", "files", "code")}
        if not model["code"]:
            del model["code"]
        plan: dict[str, Any] = {
            "train_pairs": len(data.train),
            "held_out_pairs": len(data.held_out),
            "tokens": data.identity,
        }
        if data.tokenizer.dates:
            plan["rendered_at"] = data.tokenizer.moment.isoformat()
        moments = package_of(self.recipe.train.optimizer, trained_dtype(self.recipe.model))
        weights = "bitsandbytes" if self.source.quantization is not None else None
        packages = sorted({package for package in (moments, weights) if package is not None})
        fuses = self.accelerator.device.type == "cuda" and self.packing == "shared_prefix" and not self.compiled
        sides = {"train": data.train_source, "eval": data.eval_source}
        return Identity(
            recipe=identifying_values(self.recipe),
            data={
                side: source and [(path, digest) for path, digest, _ in source.account.files]
                for side, source in sides.items()
            },
            model=model,
            tokenizer=content["tokenizer_sha256"],
            template=content["template_sha256"],
            plan=plan,
            machine={
                **{name: content["versions"][name] for name in ("simpo-cli", "torch", "transformers", "peft")},
                **{name: content["hardware"][name] for name in ("device", "threads", "cpu_capability", "compute")},
                **({"strategy": self.strategy, "ranks": self.num_ranks} if self.strategy != "none" else {}),
                "packing": self.packing,
                "liger": liger_version() if fuses else None,
                **{package: content["versions"][package] for package in packages},
                **({"compiled": True} if self.compiled else {}),
                "tokens_per_microbatch": self.budget,
                "gradient_checkpointing": self.checkpointing,
                "deterministic": self.recipe.train.deterministic,
            },
        )


def identifying_values(recipe: Recipe) -> dict[str, Any]:
    """Every value of a recipe by its dotted key, as a checkpoint keeps it: a secret is a digest."""
    return {key: told_apart(v) if isinstance(v, str) else v for key, v in recipe_values(recipe).items()}


def prepare(
    recipe: Recipe,
    before: Identity | None = None,
    *,
    quick: bool = False,
    resume: bool = False,
    num_ranks: int | None = None,
    saves: bool = True,
) -> RunPlan:
    """Decide and check everything that does not need the weights, the same on all ranks.

    Args:
        before: of a run that is resumed, what it was when it saved. The date that its template writes stays, and so do
            packing, gradient checkpointing and micro-batches, where the recipe leaves them open and the memory allows
            it: equal bits depend on all four. Micro-batches that became smaller than the recipe says, because memory
            ran out, stay so until the recipe says something else.
        resume: whether the run folder holds this run, which may have ended before it saved anything.
        num_ranks: processes of this host that would train, where those of now do not.
        saves: whether checkpoints and a model will be written.

    Raises:
        UserError: data, model, device or memory do not fit the recipe.
    """
    if quick and recipe.checkpoint.best:
        raise UserError(
            "--quick evaluates nothing, and checkpoint.best keeps the checkpoint with the lowest held-out loss.",
            "Leave --quick out, or set checkpoint.best=false.",
            key="checkpoint.best",
        )
    accelerator, compute = ranks.together(lambda: open_accelerator(recipe), "opening the device")
    require_offloadable(recipe.model, accelerator.device)
    moment = before.rendered_at if before else None

    def usable_inputs() -> Inputs:
        require_trackers(recipe.tracking.report_to)
        require_optimizer(recipe, accelerator.device)
        return inputs_of(recipe, moment)

    inputs = ranks.together(usable_inputs, "preparing the data")
    recipe, source, parameters, weights, data, plan = inputs
    notes = [*filter(None, [untried(accelerator.device)]), *_notes(recipe, source, data, plan)]
    if compute == "bf16" and not multiplies_in_bf16(device_type()):
        notes.insert(
            0, "train.precision is bf16, which this device does not multiply faster in: float32 is the faster one here"
        )
    longest_row = int(row_tokens_of_each(data.scored).max())
    why_padded = why_not_shared(source.model_class, source.config, longest_row)
    machine = before.machine if before else None
    padded = why_padded or recipe.model.attention == "padded"
    if machine and recipe.model.attention == "auto" and machine["packing"] == "padded":
        padded = True
    packing: Packing = "padded" if padded else "shared_prefix"
    workload = workload_of(inputs, longest_row, accelerator.device, compute, _available(accelerator.device, num_ranks))
    workload = replace(workload, ranks=num_ranks or ranks.world_size(), cpu_offload=recipe.distributed.cpu_offload)
    longest = int(tokens_of_each(data.scored, packing).max())
    strategy = strategy_of(recipe, source, workload, longest)
    workload = replace(workload, strategy=strategy)
    plain, checkpointed = (workload.training(checkpointing=on) for on in (False, True))
    checkpointing, given = recipe.model.gradient_checkpointing, recipe.train.tokens_per_microbatch
    if checkpointing == "auto":
        if machine and (machine["gradient_checkpointing"] or plain.fits(longest)):
            checkpointing = bool(machine["gradient_checkpointing"])
        else:
            checkpointing = is_worth_checkpointing(
                plain,
                accelerator.device,
                longest=longest,
                step_tokens=fullest_step(inputs, packing) // workload.ranks,
                budget=None if given == "auto" else given,
            )
    need = checkpointed if checkpointing else plain
    if given == "auto":
        budget = choose_budget(need, accelerator.device, longest)
        if machine and need.fits(machine["tokens_per_microbatch"]):
            budget = machine["tokens_per_microbatch"]
    else:
        require_budget(data.scored, given, packing)
        budget = given
        if before and before.recipe["train.tokens_per_microbatch"] == given:  # else somebody wants another one now
            budget = min(given, before.machine["tokens_per_microbatch"])
        if budget < given:
            notes.append(
                f"train.tokens_per_microbatch is {given:,}, and memory ran out with it: micro-batches stay at "
                f"{budget:,} tokens; another number in the recipe counts again"
            )
    left = left_budget(Path(recipe.output_dir)) if resume else None
    if left is not None and left < budget:
        budget = max(left, longest)
        notes.append(f"memory ran out on one of the processes: a micro-batch holds at most {budget:,} tokens now")
    memory = require_memory(need, budget, adapters=recipe.model.lora is not None, checkpointing=checkpointing)
    checkpoints, checkpoint_bytes, model_bytes = bytes_on_disk(recipe, source, parameters, weights)
    if saves:
        require_free_space(
            Path(recipe.output_dir),
            checkpoints * checkpoint_bytes + model_bytes - (saved_bytes(Path(recipe.output_dir)) if before else 0),
            "the checkpoints and the model",
        )
    return RunPlan(
        recipe=recipe,
        source=source,
        parameters=parameters,
        weights=weights,
        compute=compute,
        data=data,
        plan=plan,
        strategy=strategy,
        num_ranks=workload.ranks,
        packing=packing,
        why_padded=why_padded,
        checkpointing=checkpointing,
        compiled=bool(machine and machine.get("compiled")),
        budget=budget,
        need=need,
        memory=memory,
        accelerator=accelerator,
        notes=notes,
        quick=quick,
    )


class Inputs(NamedTuple):
    """Model and pairs of a recipe."""

    recipe: Recipe  # with what the start model's adapter decides
    source: ModelSource
    parameters: ParameterCounts
    weights: torch.dtype
    data: PreparedData
    plan: Plan


def inputs_of(recipe: Recipe, moment: datetime | None = None, *, weights: bool = True) -> Inputs:
    """Find and check what a run goes by, but for the device.

    Args:
        moment: when a run began that is resumed.
        weights: whether those of the model have to be on this machine; else a model of the hub is fetched without them.

    Raises:
        UserError: model or data do not fit the recipe.
    """
    recipe, source, parameters = model_of(recipe, weights=weights)
    data = prepare_data(recipe, moment)
    require_known_ids(data.scored, source)
    plan = make_plan(recipe, len(data.train))
    return Inputs(recipe, source, parameters, weights_dtype(recipe.model, source), data, plan)


def model_of(recipe: Recipe, *, weights: bool = True) -> tuple[Recipe, ModelSource, ParameterCounts]:
    """The recipe with what the start model's adapter decides, that model, and its parameters.

    Args:
        weights: as for `inputs_of`.

    Raises:
        UserError: the model does not fit the recipe.
    """
    with about("model.path"):
        source = start_model(recipe.model, weights=weights)
    recipe = replace(recipe, model=choose_adapter(recipe.model, source))
    require_trainable(recipe.model, source)
    require_lengths(recipe, source)
    return recipe, source, count_parameters(recipe.model, source)


def workload_of(inputs: Inputs, longest_row: int, device: torch.device, compute: Precision, available: int) -> Workload:
    """The run on one device, as far as memory goes; `longest_row` is of all its pairs."""
    lora = inputs.recipe.model.lora
    return Workload(
        config=inputs.source.text_config,
        parameters=inputs.parameters,
        weights=inputs.weights,
        compute=torch.bfloat16 if compute == "bf16" else torch.float32,
        quantization=inputs.source.quantization,
        lora_rank=None if lora is None else lora.rank,
        longest_row=longest_row,
        device=device,
        available=available,
        optimizer=inputs.recipe.train.optimizer,
        activation_offload=inputs.recipe.model.activation_offload,
    )


def fullest_step(inputs: Inputs, packing: Packing) -> int:
    """Tokens of the fullest step that there could be."""
    tokens = tokens_of_each(inputs.data.train, packing)
    return int(np.sort(tokens)[-inputs.plan.pairs_per_step :].sum())


def _available(device: torch.device, num_ranks: int | None) -> int:
    """Free memory of the device that has least; ranks of a host share its memory where they compute on it."""
    here = num_ranks or ranks.local_size() if device.type == "cpu" else 1
    return ranks.smallest(available_bytes(device) // here, "comparing the memory")


def bytes_on_disk(
    recipe: Recipe, source: ModelSource, parameters: ParameterCounts, weights: torch.dtype
) -> tuple[int, int, int]:
    """How many checkpoints a run has on the disk at once, the bytes of each, and those of the model that it writes."""
    # one more than are kept, while the oldest waits for the newest; without `every`, that of step 0 and the last
    checkpoints = recipe.checkpoint.keep + recipe.checkpoint.best + 1 if recipe.checkpoint.every else 2
    each = state_size(recipe, parameters)
    merged = parameters.total * weights.itemsize if keeps_merged(recipe.model) else 0
    return checkpoints, each, _bytes_of_model(recipe, source, parameters, weights) + merged


def _bytes_of_model(recipe: Recipe, source: ModelSource, parameters: ParameterCounts, weights: torch.dtype) -> int:
    """Of model/: all weights, or adapters in float32, with the head and embedding if peft may save those too."""
    lora = recipe.model.lora
    if lora is None:
        return parameters.total * export_dtype(recipe, source).itemsize
    ends = 0 if isinstance(lora.target_modules, str) else parameters.outside_layers * weights.itemsize
    return 4 * parameters.trainable * lora.saved_rank // lora.rank + ends


def _notes(recipe: Recipe, source: ModelSource, data: PreparedData, plan: Plan) -> Iterator[str]:
    """What is unusual about the data and the steps."""
    if data.tokenizer.dates:
        written = ", ".join(data.tokenizer.dates)
        yield f"the chat template writes the date, which stays that of the run's beginning: {written}"
    for side in data.sources:
        account = side.account
        yield from cut_warnings(account.needed, recipe.data, source.max_length).values()
        if account.counts[AS_TRANSCRIPT]:
            yield (
                f"{account.counts[AS_TRANSCRIPT]:,} pairs are conversations, and there is no chat template: they "
                "become Human/Assistant text; name a template with data.chat_template, or say that this is meant with "
                "data.chat_template=none"
            )
    for key, every in (("checkpoint.every", recipe.checkpoint.every), ("eval.every", recipe.eval.every)):
        if every is not None and every > plan.num_steps:
            yield f"{key} is {every} and the run has {plan.num_steps} steps: it comes due at the end and not before"


@stage("hashing the files of the model")
def _model_files(source: ModelSource) -> dict[str, str]:
    """sha256 of the weight files, with those of the model below an adapter; a hub id is named by its commit instead."""
    if source.revision is not None:
        return {}
    files = {file.name: sha256_of(file) for file in sorted(source.folder.glob("*.safetensors"))}
    if source.adapter_base is not None:
        files |= {f"base/{name}": digest for name, digest in _model_files(source.adapter_base).items()}
    return files
