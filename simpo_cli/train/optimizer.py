"""AdamW and its learning rate: made for a policy, saved by name and whole, whatever the devices were.

The state is the trainable weights and both moments. The pairs of a step, its learning rate and what rounds its weights
follow from its number, so there is nothing else that a run could lose.

| trained weights | `adamw` | `adamw_8bit` |
|---|---|---|
| float32, so all adapters | torch's | bitsandbytes, on CUDA paged if the recipe says so |
| bfloat16 | `NarrowAdamW`, float32 moments | `NarrowAdamW`, moments of torchao |
| float16 | `NarrowAdamW`, float32 moments | refused by the recipe |
"""

import json
import math
from typing import Any

import torch
from torch import Tensor, nn, optim

from simpo_cli.distributed import ranks
from simpo_cli.distributed.files import deal, first_problem, in_turns, verify
from simpo_cli.distributed.sharded import local, reshard
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.backend import backend_of
from simpo_cli.model.load import ParameterCounts
from simpo_cli.model.moments import moments_size, package_of, torchao_moment
from simpo_cli.model.policy import trainable
from simpo_cli.model.quantised import bitsandbytes
from simpo_cli.model.source import trained_dtype
from simpo_cli.model.tensor_file import (
    TensorMismatchError,
    plain_parts,
    read_shards,
    read_tensors,
    write_as_they_come,
    write_tensors,
)
from simpo_cli.recipe.schema import Recipe, TrainRecipe
from simpo_cli.run.checkpoint import CheckpointWriter
from simpo_cli.run.folder import OPTIMIZER, STEP_COUNTS, WEIGHTS
from simpo_cli.run.manifest import Checkpoint, DamagedCheckpointError, part_name
from simpo_cli.train.narrow_adamw import NarrowAdamW
from simpo_cli.versions import install_command

_HEADER_BYTES = 2048  # of all that a checkpoint says of one trained tensor, its numbers aside


def make_optimizer(policy: nn.Module, recipe: TrainRecipe, seed: int = 0) -> optim.Optimizer:
    """The recipe's optimizer over the trainable parameters; its learning rate is set at every step.

    Args:
        seed: of the noise that rounds bfloat16 weights.
    """
    weights, decay = list(trainable(policy).values()), recipe.weight_decay
    is_narrow = any(weight.dtype != torch.float32 for weight in weights)
    settings: dict[str, Any] = {"lr": 0.0, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": decay}  # the authors'
    match recipe.optimizer:
        case "adamw" if not is_narrow:
            fused = backend_of(weights[0].device).fused_adamw
            return optim.AdamW(weights, **settings, fused=fused)
        case "adamw":
            return NarrowAdamW(weights, weight_decay=decay, seed=seed)
        case "adamw_8bit" if is_narrow:
            return NarrowAdamW(weights, weight_decay=decay, seed=seed, state_type=torchao_moment())
        case "adamw_8bit":
            eight_bit: optim.Optimizer = bitsandbytes().optim.AdamW8bit(weights, **settings)
            return eight_bit
        case "paged_adamw_8bit":
            paged: optim.Optimizer = bitsandbytes().optim.PagedAdamW8bit(weights, **settings)
            return paged


def start_moments(optimizer: optim.Optimizer) -> None:
    """Make the moments of AdamW now, as its first step would: from then on the state has its full size."""
    for at, group in enumerate(optimizer.param_groups):
        for number, parameter in enumerate(group["params"]):
            if isinstance(optimizer, optim.AdamW):
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
            elif isinstance(optimizer, NarrowAdamW):
                optimizer.start(parameter)
            else:
                of_bitsandbytes: Any = optimizer
                of_bitsandbytes.init_state(group, parameter, at, number)
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # paged moments are memory of the host too, which the card is still filling


def why_whole(recipe: Recipe) -> str | None:
    """Why fsdp2 cannot shard the moments; None where it can, and under adapters, which it leaves whole."""
    if recipe.train.optimizer == "adamw" or recipe.model.lora is not None:
        return None
    return "a scale of 8-bit moments is that of 256 numbers, which shards would cut apart"


def require_optimizer(recipe: Recipe, device: torch.device) -> None:
    """Refuse an optimizer that the device does not have, or whose package cannot be imported.

    Raises:
        UserError: pages are wanted and there is no card (exit code 2), or the package is missing (exit code 4).
    """
    name = recipe.train.optimizer
    if name == "paged_adamw_8bit" and device.type != "cuda":
        raise UserError(
            f"train.optimizer is {name}, whose pages move between a CUDA card and the host, and this is a "
            f"{device.type}.",
            "Set train.optimizer to adamw_8bit: its moments take the same memory.",
            key="train.optimizer",
        )
    if (package := package_of(name, trained_dtype(recipe.model))) is None:
        return
    try:
        bitsandbytes() if package == "bitsandbytes" else torchao_moment()
    except ImportError as error:
        raise UserError(
            f"train.optimizer is {name}, which needs {package}, and that cannot be imported: {error}.",
            f"Run {install_command('quant')}, or set train.optimizer to adamw.",
            exit_code=ExitCode.ENVIRONMENT,
            key="train.optimizer",
        ) from error


def save_state(files: CheckpointWriter, policy: nn.Module, optimizer: optim.Optimizer) -> None:
    """Write weights and moments into a checkpoint: all of them, or of several ranks each its part.

    Raises:
        OSError: the disk did not take them; the other ranks have all that they gather from this one.
    """
    failure: OSError | None = None
    for name, tensors in _state(policy, optimizer).items():
        if ranks.world_size() == 1:
            with files.open(name) as file:
                write_tensors(file, tensors)
            continue
        by_size = deal({one: tensor.nbytes for one, tensor in tensors.items()})
        dealt = [sorted(names, key=lambda one: -tensors[one].element_size()) for names in by_size]
        turns = in_turns(tensors, dealt)
        try:
            if failure is None:
                with files.open(part_name(name, ranks.rank())) as file:
                    write_as_they_come(file, {one: tensors[one] for one in dealt[ranks.rank()]}, turns)
        except OSError as error:
            failure = error
        for _ in turns:
            pass  # the others gather theirs, whatever became of this rank's file
    if failure is not None:
        raise failure
    if ranks.is_first() and (counts := _step_counts(policy, optimizer)):
        with files.open(STEP_COUNTS) as file:
            file.write(json.dumps(counts).encode())


def load_state(checkpoint: Checkpoint, policy: nn.Module, optimizer: optim.Optimizer) -> None:
    """Read weights and moments from a checkpoint into place; `start_moments` comes before.

    Raises:
        DamagedCheckpointError: the files are not those that were saved; policy and optimizer hold anything.
        TensorMismatchError: they are, and belong to another model.
    """
    state = _state(policy, optimizer)
    if ranks.world_size() == 1:
        for name, tensors in state.items():
            with checkpoint.open_parts(name) as files:
                read_tensors(files, tensors)
        _set_step_counts(checkpoint, policy, optimizer)
        return
    verify(checkpoint, [part for name in state for part in checkpoint.parts(name)])
    mismatch: str | None = None
    damage: str | None = None
    try:
        for name, tensors in state.items():
            read_shards([checkpoint.folder / part for part in checkpoint.parts(name)], tensors)
        _set_step_counts(checkpoint, policy, optimizer)
    except DamagedCheckpointError as error:
        damage = error.reason
    except TensorMismatchError as error:
        mismatch = str(error)
    except (OSError, EOFError) as error:
        damage = f"cannot be read: {error}"
    what = f"reading {checkpoint.folder}"
    if problem := first_problem(damage, what):
        raise DamagedCheckpointError(checkpoint.folder, problem)
    if problem := first_problem(mismatch, what):
        raise TensorMismatchError(problem)


def _state(policy: nn.Module, optimizer: optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint holds, by file: weights and moments."""
    reshard(policy)  # what the optimizer knows are the shards
    weights = trainable(policy)
    moments = {
        part: tensor
        for name, parameter in weights.items()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
        for part, tensor in plain_parts(f"{name}.{key}", value).items()
    }
    state: dict[str, dict[str, Tensor]] = {WEIGHTS: {**weights}, OPTIMIZER: moments}
    if ranks.world_size() == 1:
        return {file: {name: local(tensor) for name, tensor in tensors.items()} for file, tensors in state.items()}
    return state


def _step_counts(policy: nn.Module, optimizer: optim.Optimizer) -> dict[str, int]:
    """How often each weight was moved, where the optimizer counts that in no tensor, as torch's does."""
    counts = {name: optimizer.state[parameter]["step"] for name, parameter in trainable(policy).items()}
    return {name: count for name, count in counts.items() if not isinstance(count, Tensor)}


def _set_step_counts(checkpoint: Checkpoint, policy: nn.Module, optimizer: optim.Optimizer) -> None:
    """Read them from a checkpoint that has tensors of the same names."""
    expected, weights = _step_counts(policy, optimizer), trainable(policy)
    counts = checkpoint.read_json(STEP_COUNTS) if expected and STEP_COUNTS in checkpoint.manifest.files else {}
    for name in expected:
        if not isinstance(counts.get(name), int):
            raise TensorMismatchError(f"{STEP_COUNTS} does not say how often {name} was moved")
        optimizer.state[weights[name]]["step"] = counts[name]


def state_size(recipe: Recipe, parameters: ParameterCounts) -> int:
    """Bytes of one checkpoint."""
    itemsize = trained_dtype(recipe.model).itemsize
    numbers = parameters.trainable * itemsize + moments_size(recipe.train.optimizer, parameters, itemsize)
    return numbers + _HEADER_BYTES * len(parameters.trained_sizes)


def saved_size(policy: nn.Module, optimizer: optim.Optimizer) -> int:
    """The same of an optimizer whose moments are made, all ranks together."""
    numbers = sum(tensor.nbytes for tensors in _state(policy, optimizer).values() for tensor in tensors.values())
    return numbers + _HEADER_BYTES * len(trainable(policy))


def learning_rate(step: int, num_steps: int, recipe: TrainRecipe) -> float:
    """The learning rate of an update, with the semantics of transformers' schedulers.

    Warm-up steps are rounded up and rise linearly from 0, so with warm-up the first update moves nothing; then the rate
    falls to 0 by half a cosine or a line, or stays.

    Args:
        step: 0 is the first update.
    """
    warmup = math.ceil(num_steps * recipe.warmup_ratio)
    if step < warmup:
        return recipe.learning_rate * step / max(1, warmup)
    done = (step - warmup) / max(1, num_steps - warmup)
    match recipe.lr_scheduler:
        case "cosine":
            return recipe.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
        case "linear":
            return recipe.learning_rate * max(0.0, 1.0 - done)
        case "constant":
            return recipe.learning_rate
