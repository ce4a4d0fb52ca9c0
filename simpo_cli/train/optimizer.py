"""AdamW and its learning rate: made for a policy, saved by name and whole, whatever the devices were.

The state is the trainable weights and both moments. The pairs of a step and its learning rate follow from its number,
so there is nothing else that a run could lose.
"""

import math

import torch
from torch import Tensor, nn, optim

from simpo_cli.model.policy import trainable
from simpo_cli.model.tensor_file import read_tensors, write_tensors
from simpo_cli.recipe.schema import TrainRecipe
from simpo_cli.run.checkpoint import CheckpointWriter
from simpo_cli.run.folder import OPTIMIZER, WEIGHTS
from simpo_cli.run.manifest import Checkpoint


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
    """Write weights and moments into a checkpoint."""
    with files.open(WEIGHTS) as file:
        write_tensors(file, trainable(policy))
    with files.open(OPTIMIZER) as file:
        write_tensors(file, _moments(policy, optimizer))


def load_state(checkpoint: Checkpoint, policy: nn.Module, optimizer: optim.Optimizer) -> None:
    """Read weights and moments from a checkpoint into place; `start_moments` comes before.

    Raises:
        DamagedCheckpointError: the files are not those that were saved; policy and optimizer hold anything.
        TensorMismatchError: they are, and belong to another model.
    """
    with checkpoint.open(WEIGHTS) as file:
        read_tensors(file, trainable(policy))
    with checkpoint.open(OPTIMIZER) as file:
        read_tensors(file, _moments(policy, optimizer))


def _moments(policy: nn.Module, optimizer: optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, parameter in trainable(policy).items()
        for key, value in optimizer.state[parameter].items()
    }


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
