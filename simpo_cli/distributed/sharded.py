"""A model that is sharded over the ranks by torch's FSDP2, and its tensors one at a time.

Each layer gathers its parameters whole while it is computed and lets go of them; what is outside of the layers, such as
the embedding and the head, stays whole from a step's forward pass to the end of its backward pass. They are gathered in
the type that they are held in, so that a step's arithmetic is the same on any number of ranks.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from simpo_cli.distributed import ranks


def shard(
    module: nn.Module,
    layers: Sequence[nn.Module],
    *,
    device: torch.device,
    whole: Collection[nn.Parameter] = (),
    offload: bool = False,
) -> None:
    """Shard a module over all ranks, each of its layers by itself; calls go through the module.

    Args:
        module: on its device, or on the meta device, where `fill` gives its tensors their numbers.
        whole: parameters that stay whole on every rank.
        offload: keep the shards in the memory of the host.
    """
    policy: OffloadPolicy = CPUOffloadPolicy() if offload else OffloadPolicy()
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (ranks.world_size(),)),
        "ignored_params": set(whole),
        "offload_policy": policy,
    }
    for layer in layers:
        fully_shard(layer, **options)
    fully_shard(module, **options)


def is_sharded(what: Tensor | nn.Module) -> bool:
    """Whether each rank has a part of it."""
    return isinstance(what, DTensor | FSDPModule)


def local(tensor: Tensor) -> Tensor:
    """This rank's part, in the same memory; a tensor that is whole is its own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole of it on every rank: a collective where it is sharded, and a tensor of its own then."""
    detached: Any = tensor.detach()
    whole: Tensor = detached.full_tensor() if isinstance(tensor, DTensor) else detached
    return whole


def rows_of(parameter: Tensor) -> slice:
    """The rows of a sharded parameter that this rank keeps: FSDP2 gives all ranks but the last ones as many."""
    each = -(-parameter.shape[0] // ranks.world_size())
    start = min(ranks.rank() * each, parameter.shape[0])
    return slice(start, min(start + each, parameter.shape[0]))


def reshard(module: nn.Module) -> None:
    """Let go of what a forward pass without a backward pass left whole: parameters are the optimizer's again."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """The module whole on every rank for a while, for what does not go through its forward; nothing may be trained.

    Entering is a collective, and what is computed inside is none.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            # as fully_shard sets it: what the root holds is wanted again at once by the backward pass
            part.set_reshard_after_forward(part is not module, recurse=False)


def fill(module: nn.Module, read: Callable[[str], Tensor], device: torch.device, *, offload: bool = False) -> None:
    """Give a module on the meta device its numbers, one tensor after the other, from the first rank.

    No rank but the first calls `read`, and none holds more than its shards and one whole tensor. Parameters that are on
    a device already stay as they are.

    Args:
        read: the tensor of a parameter, by its name, in any type.
        device: where the module computes.
        offload: keep shards in the memory of the host.
    """
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            owners.setdefault(parameter, []).append((owner, name))
    for name, parameter in list(module.named_parameters()):
        if not local(parameter).is_meta:
            continue
        whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        if ranks.is_first():
            whole.copy_(read(name))
        dist.broadcast(whole, 0)
        filled: Tensor = whole
        if isinstance(parameter, DTensor):
            part = whole[rows_of(parameter)].clone()
            filled = DTensor.from_local(
                part.cpu() if offload else part,
                parameter.device_mesh,
                [Shard(0)],
                run_check=False,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
        new = nn.Parameter(filled, requires_grad=parameter.requires_grad)
        for owner, key in owners[parameter]:
            setattr(owner, key, new)
