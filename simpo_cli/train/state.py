"""The training state: trainable weights and both moments of AdamW, by name and whole, whatever the devices were.

The pairs of a step and its learning rate follow from its number, so there is nothing else that a run could lose.
"""

import torch
from torch import Tensor, nn, optim

from simpo_cli.model.policy import trainable
from simpo_cli.run.checkpoint import CheckpointWriter
from simpo_cli.run.manifest import Checkpoint
from simpo_cli.train.run_folder import OPTIMIZER, WEIGHTS
from simpo_cli.train.tensor_file import read_tensors, write_tensors


def make_optimizer(policy: nn.Module, *, weight_decay: float) -> optim.AdamW:
    """AdamW as the authors use it, over the trainable parameters; its learning rate is set at every step."""
    return optim.AdamW(
        trainable(policy).values(), lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, fused=True
    )


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
