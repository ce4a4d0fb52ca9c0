"""AdamW and its learning rate: made for a policy, saved by name and whole, whatever the devices were.

The state is the trainable weights and both moments. The pairs of a step and its learning rate follow from its number,
so there is nothing else that a run could lose.
"""

import math

import torch
from torch import Tensor, nn, optim

from simpo_cli.distributed import ranks
from simpo_cli.distributed.files import deal, first_problem, in_turns, verify
from simpo_cli.distributed.sharded import local, reshard
from simpo_cli.model.policy import trainable
from simpo_cli.model.tensor_file import (
    TensorMismatchError,
    read_shards,
    read_tensors,
    write_as_they_come,
    write_tensors,
)
from simpo_cli.recipe.schema import TrainRecipe
from simpo_cli.run.checkpoint import CheckpointWriter
from simpo_cli.run.folder import OPTIMIZER, WEIGHTS
from simpo_cli.run.manifest import Checkpoint, DamagedCheckpointError, part_name


def make_optimizer(policy: nn.Module, recipe: TrainRecipe) -> optim.Optimizer:
    """The recipe's optimizer over the trainable parameters; its learning rate is set at every step."""
    match recipe.optimizer:
        case "adamw":  # as the authors use it
            weights, decay = trainable(policy).values(), recipe.weight_decay
            return optim.AdamW(weights, lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay, fused=True)


def start_moments(optimizer: optim.Optimizer) -> None:
    """Make the moments of AdamW now, as its first step would: from then on the state has its full size."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


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
        return
    verify(checkpoint, [part for name in state for part in checkpoint.parts(name)])
    mismatch: str | None = None
    damage: str | None = None
    try:
        for name, tensors in state.items():
            read_shards([checkpoint.folder / part for part in checkpoint.parts(name)], tensors)
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
        f"{name}.{key}": value
        for name, parameter in weights.items()
        for key, value in optimizer.state[parameter].items()
    }
    state: dict[str, dict[str, Tensor]] = {WEIGHTS: {**weights}, OPTIMIZER: moments}
    if ranks.world_size() == 1:
        return {file: {name: local(tensor) for name, tensor in tensors.items()} for file, tensors in state.items()}
    return state


def state_size(parameters: int, weights_itemsize: int) -> int:
    """Bytes of one checkpoint of so many trainable parameters."""
    return 3 * parameters * weights_itemsize


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
