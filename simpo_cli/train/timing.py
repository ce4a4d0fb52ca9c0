"""How long the steps of a run would take on this machine, by a few of its own micro-batches."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import microbatches, tokens_of_each
from simpo_cli.model.activations import require_offloadable
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.backend import available_bytes
from simpo_cli.model.device import device_name, open_accelerator
from simpo_cli.model.load import load_start
from simpo_cli.model.memory import require_memory
from simpo_cli.model.out_of_memory import memory_for
from simpo_cli.model.policy import Policy
from simpo_cli.model.shares import Share
from simpo_cli.stages import stage
from simpo_cli.train.forecast import Survey, tokens_of_run
from simpo_cli.train.optimizer import make_optimizer, require_optimizer, start_moments
from simpo_cli.train.step import accumulate

MICROBATCHES, _UPDATES = 9, 3  # that are timed
_FREE_MEMORY = "Free some memory, or lower train.tokens_per_microbatch or data.max_length."


def measure(survey: Survey, num_microbatches: int = MICROBATCHES) -> dict[str, Any]:
    """Load the model, time some micro-batches and updates of it, and expect the time of all steps by their tokens.

    The self-check, evaluations, answers and checkpoints come on top.

    Args:
        num_microbatches: how many are timed, beside one that warms up.

    Raises:
        UserError: the run does not fit on one device of this machine (exit code 4).
    """
    recipe = survey.inputs.recipe
    accelerator, compute = open_accelerator(recipe)
    device = accelerator.device
    require_optimizer(recipe, device)
    require_offloadable(recipe.model, device)
    need, budget, checkpointing = survey.fitted(survey.workload(device, compute, available_bytes(device)))
    require_memory(need, budget, adapters=recipe.model.lora is not None, checkpointing=checkpointing)

    def seconds_of(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        torch.get_device_module(device).synchronize()
        return time.perf_counter() - started

    with memory_for("a micro-batch", _FREE_MEMORY):
        policy = Policy(_model(survey, device), survey.packing).train()
        if checkpointing:
            policy.recompute_activations()
        if recipe.model.activation_offload:
            policy.offload_activations()
        optimizer = make_optimizer(policy, recipe.train)  # its learning rate is 0
        start_moments(optimizer)
        batches, speeds = _sample(survey, budget, num_microbatches), []
        with stage("timing micro-batches", len(batches)) as timing:
            for number, batch in enumerate([batches[0], *batches]):
                share = Share([range(len(batch))])
                gradient = partial(accumulate, policy, batch, share, loss=recipe.loss, accelerator=accelerator, step=0)
                seconds = seconds_of(gradient)
                if number:  # the first one warms up
                    speeds.append(int(tokens_of_each(batch, survey.packing).sum()) / seconds)
                    timing.advance()
        update = median(seconds_of(optimizer.step) for _ in range(_UPDATES))
    return {
        "device": device_name(device),
        "tokens_per_second": {"median": median(speeds), "low": min(speeds), "high": max(speeds), "n": len(speeds)},
        "tokens_per_microbatch": budget,
        "gradient_checkpointing": checkpointing,
        "seconds_per_update": update,
        "expected_seconds": tokens_of_run(survey) / median(speeds) + survey.inputs.plan.num_steps * update,
    }


def _model(survey: Survey, device: torch.device) -> nn.Module:
    """The model as training starts from it, but for the numbers of new adapters."""
    recipe = survey.inputs.recipe.model
    model = load_start(recipe, survey.inputs.source, survey.inputs.weights, device)
    return model if recipe.lora is None or recipe.adapter == "continue" else add_adapters(model, recipe.lora)


def _sample(survey: Survey, budget: int, count: int) -> Sequence[Sequence[EncodedPair]]:
    """Micro-batches from all over the run, and from the full ones of a step to the last."""
    batches = []
    for number in range(count):
        pairs = survey.inputs.data.train.select(
            survey.inputs.plan.pairs_of(number * survey.inputs.plan.num_steps // count)
        )
        cut = microbatches(pairs, budget, survey.packing)
        batches.append([pairs[i] for i in cut[number * len(cut) // count]])
    return batches
