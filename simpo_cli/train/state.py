"""The training state as files: trainable weights and both moments of AdamW; safetensors and JSON, no pickles."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


def trainable(policy: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training moves, by name; tied ones once."""
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}


def make_optimizer(policy: nn.Module, *, weight_decay: float) -> torch.optim.AdamW:
    """AdamW as the authors use it, over the trainable parameters; its learning rate is set at every step."""
    return torch.optim.AdamW(
        trainable(policy).values(), lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, fused=True
    )


def save_state(folder: Path, policy: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write weights, optimizer moments and the number of steps done into a folder."""
    parameters = trainable(policy)
    save_file({name: parameter.detach().contiguous() for name, parameter in parameters.items()}, folder / WEIGHTS)
    moments: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            moments[f"{name}.{key}"] = value.detach().contiguous()
    save_file(moments, folder / OPTIMIZER)
    (folder / STATE).write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")


def state_size(parameters: int, weights_itemsize: int) -> int:
    """Bytes of one checkpoint of so many trainable parameters."""
    return 3 * parameters * weights_itemsize
