"""What a run will take, told before a weight is read: steps and tokens, memory of devices that need not be here, disk.

`survey` finds what of a run follows from recipe, data and configuration; `forecast` makes the document of `simpo plan`
of it, which screen and JSON show. `timing` adds what only the weights on a device can tell.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

import simpo_cli
from simpo_cli.data.plan import Packing, row_tokens_of_each, tokens_of_each
from simpo_cli.data.prepare import require_budget
from simpo_cli.model.attention.interface import why_not_shared
from simpo_cli.model.device import Precision
from simpo_cli.model.memory import MemoryNeed, Strategy, Workload, choose_budget, is_worth_checkpointing
from simpo_cli.model.source import DTYPE_NAMES
from simpo_cli.recipe.schema import Recipe
from simpo_cli.train.run_plan import (
    Inputs,
    RunPlan,
    bytes_on_disk,
    fullest_step,
    inputs_of,
    workload_of,
)
from simpo_cli.train.strategy import why_not_sharded

SIZES_GB = (24, 48, 80, 141)
"""Devices that are looked at. One of 24 GB has 24e9 bytes for tensors: what it has beyond is left to CUDA and NCCL."""
_SET_UPS: tuple[tuple[Strategy, int], ...] = (
    ("none", 1),
    ("ddp", 2), ("ddp", 4), ("ddp", 8),
    ("fsdp2", 2), ("fsdp2", 4), ("fsdp2", 8),
)  # fmt: skip
"""Strategies, with the numbers of devices that they are looked at on."""
_CARD = torch.device("cuda")


@dataclass(frozen=True)
class Survey:
    """A run, so far as recipe, data and configuration tell of it."""

    inputs: Inputs
    packing: Packing

    @classmethod
    def of(cls, run: RunPlan) -> "Survey":
        """That of a run that is prepared for this machine."""
        return cls(Inputs(*(getattr(run, name) for name in Inputs._fields)), run.packing)

    @cached_property
    def longest(self) -> int:
        """Tokens that the longest pair takes of a micro-batch."""
        return int(tokens_of_each(self.inputs.data.scored, self.packing).max())

    @cached_property
    def longest_row(self) -> int:
        """Tokens of the longest sequence."""
        return int(row_tokens_of_each(self.inputs.data.scored).max())

    @cached_property
    def step_tokens(self) -> int:
        """Tokens of the fullest step that there could be."""
        return fullest_step(self.inputs, self.packing)

    def workload(self, device: torch.device, compute: Precision, available: int) -> Workload:
        """The run on one device, as far as memory goes."""
        return workload_of(self.inputs, self.longest_row, device, compute, available)

    def fitted(self, work: Workload) -> tuple[MemoryNeed, int, bool]:
        """What the run takes of a device, most tokens of a micro-batch, and whether layers are computed again."""
        recipe = self.inputs.recipe
        checkpointing, given = recipe.model.gradient_checkpointing, recipe.train.tokens_per_microbatch
        if checkpointing == "auto":
            checkpointing = is_worth_checkpointing(
                work.training(checkpointing=False),
                work.device,
                longest=self.longest,
                step_tokens=self.step_tokens // work.ranks,
                budget=None if given == "auto" else given,
            )
        need = work.training(checkpointing=checkpointing)
        return need, choose_budget(need, work.device, self.longest) if given == "auto" else given, checkpointing


def survey(recipe: Recipe, *, weights: bool) -> Survey:
    """Look at all that a run goes by.

    Args:
        weights: whether those of the model have to be on this machine; else a model of the hub is fetched without them.

    Raises:
        UserError: model or data do not fit the recipe.
    """
    inputs = inputs_of(recipe, weights=weights)
    recipe, source, data = inputs.recipe, inputs.source, inputs.data
    longest_row = int(row_tokens_of_each(data.scored).max())
    padded = recipe.model.attention == "padded" or why_not_shared(source.model_class, source.config, longest_row)
    packing: Packing = "padded" if padded else "shared_prefix"
    if recipe.train.tokens_per_microbatch != "auto":
        require_budget(data.scored, recipe.train.tokens_per_microbatch, packing)
    return Survey(inputs, packing)


def forecast(survey: Survey, timing: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The document of `simpo plan`, see docs/plan.md; `timing` is what `timing.measure` found."""
    recipe, source, parameters, weights, _, _ = survey.inputs
    checkpoints, checkpoint, model = bytes_on_disk(recipe, source, parameters, weights)
    not_sharded = why_not_sharded(recipe, source)
    set_ups = [(strategy, count) for strategy, count in _SET_UPS if strategy != "fsdp2" or not not_sharded]
    return {
        "schema_version": 1,
        "tool": {"name": "simpo", "version": simpo_cli.__version__},
        "recipe": recipe.name,
        "model": {
            "name": source.name,
            "parameters": parameters.total,
            "trainable_parameters": parameters.trainable,
            "weights_dtype": DTYPE_NAMES[weights],
            "quantization": source.quantization,
        },
        "run": _run(survey),
        "memory": [_least(survey, strategy, count) for strategy, count in set_ups],
        "devices": [_on_device(survey, strategy, count, size) for size in SIZES_GB for strategy, count in set_ups],
        "not_sharded": not_sharded,
        "disk": {
            "checkpoints": checkpoints,
            "checkpoint_bytes": checkpoint,
            "model_bytes": model,
            "total_bytes": checkpoints * checkpoint + model,
        },
        "time": timing,
    }


def tokens_of_run(survey: Survey) -> int:
    """Tokens that all steps compute."""
    plan, tokens = survey.inputs.plan, tokens_of_each(survey.inputs.data.train, survey.packing)
    epochs, steps = divmod(plan.num_steps, plan.steps_per_epoch)
    begun = range(epochs * plan.steps_per_epoch, epochs * plan.steps_per_epoch + steps)
    return epochs * int(tokens.sum()) + sum(int(tokens[plan.pairs_of(step)].sum()) for step in begun)


def _run(survey: Survey) -> dict[str, Any]:
    data, plan = survey.inputs.data, survey.inputs.plan
    tokens, padded = (int(tokens_of_each(data.train, packing).sum()) for packing in (survey.packing, "padded"))
    return {
        "pairs": len(data.train),
        "held_out_pairs": len(data.held_out),
        "epochs": plan.epoch_after(plan.num_steps),
        "steps": plan.num_steps,
        "pairs_per_step": plan.pairs_per_step,
        "tokens": tokens_of_run(survey),
        "longest_pair_tokens": survey.longest,
        "packing": survey.packing,
        "saved_share": 1 - tokens / padded,
    }


def _least(survey: Survey, strategy: Strategy, count: int) -> dict[str, Any]:
    """The least that a device has to have: layers computed again if the recipe lets them, and one pair at a time."""
    checkpointing = survey.inputs.recipe.model.gradient_checkpointing is not False
    given = survey.inputs.recipe.train.tokens_per_microbatch
    need = _on_card(survey, strategy, count, 0).training(checkpointing=checkpointing)
    tokens = survey.longest if given == "auto" else given
    return {"strategy": strategy, "devices": count, **_as_json(need, tokens, checkpointing=checkpointing)}


def _on_device(survey: Survey, strategy: Strategy, count: int, size: int) -> dict[str, Any]:
    """Whether so many devices of a size would do, and what the run would take of each."""
    need, tokens, checkpointing = survey.fitted(_on_card(survey, strategy, count, int(size * 1e9)))
    return {
        "size_gb": size,
        "strategy": strategy,
        "devices": count,
        "fits": need.fits(tokens),
        **_as_json(need, tokens, checkpointing=checkpointing),
    }


def _on_card(survey: Survey, strategy: Strategy, count: int, available: int) -> Workload:
    """The run on one of several cards, which multiply in bfloat16."""
    work = survey.workload(_CARD, "fp32" if survey.inputs.recipe.train.precision == "fp32" else "bf16", available)
    return replace(work, strategy=strategy, ranks=count, cpu_offload=survey.inputs.recipe.distributed.cpu_offload)


def _as_json(need: MemoryNeed, tokens: int, *, checkpointing: bool) -> dict[str, Any]:
    return {
        "gradient_checkpointing": checkpointing,
        "tokens_per_microbatch": tokens,
        "bytes": {**need.parts(tokens), "total": need.total(tokens), "on_host": need.hosted(tokens)},
    }
