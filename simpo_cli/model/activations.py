"""What layers keep from the forward for the backward pass: its bytes, and a place for it in the memory of the host.

Autograd shows every tensor that it saves to hooks. Those of weights are left where they are: the weights themselves,
and autocast's narrower copies of them, which have a weight's shape. Gradient checkpointing shows the inputs of layers
and nothing else.

What a hook returns has to be detached: an operation that saves its own output would hold itself otherwise, and with it
all that was saved before, for as long as the process lives.
"""

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from simpo_cli.distributed.sharded import local
from simpo_cli.errors import UserError
from simpo_cli.model.backend import backend_of
from simpo_cli.recipe.schema import ModelRecipe

_SMALLEST = 1 << 20  # bytes: what is smaller is not worth a copy


class _Weights:
    """Tells tensors of weights from activations."""

    def __init__(self, model: nn.Module) -> None:
        weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        self._places = {local(weight).untyped_storage().data_ptr() for weight in weights}
        self._shapes = {tuple(sorted(weight.shape)) for weight in weights}

    def __contains__(self, tensor: Tensor) -> bool:
        # transposed as a product saves them
        return tensor.untyped_storage().data_ptr() in self._places or tuple(sorted(tensor.shape)) in self._shapes


def require_offloadable(recipe: ModelRecipe, device: torch.device) -> None:
    """Refuse to move activations to the memory where they are."""
    if recipe.activation_offload and not backend_of(device).own_memory:
        raise UserError(
            f"model.activation_offload moves activations from a card to the host, and {device.type} shares its memory.",
            "Leave it out; model.gradient_checkpointing: true needs less memory here.",
            key="model.activation_offload",
        )


class SavedBytes(saved_tensors_hooks):
    """Counts what autograd saves in the block, each storage once.

    Attributes:
        total: bytes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.total = 0
        self._weights = _Weights(model)
        self._seen: WeakKeyDictionary[torch.UntypedStorage, None] = WeakKeyDictionary()
        super().__init__(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._seen and tensor not in self._weights:
            self._seen[storage] = None
            self.total += storage.nbytes()
        return tensor.detach()


class _OnHost(NamedTuple):
    """A tensor whose storage has been copied to the host, as a whole: how it lies there is as it was."""

    storage: Tensor  # its bytes
    device: torch.device
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class ActivationsOnHost(saved_tensors_hooks):
    """Copies what autograd saves in the block to the host, and back when the backward pass asks for it.

    A storage is copied once, however many tensors of it are saved: autograd allows none of them to change later. From
    page-locked memory the copies are in the order of the device's own work, and nobody waits for them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = _Weights(model)
        self._copies: WeakKeyDictionary[torch.UntypedStorage, Tensor] = WeakKeyDictionary()
        super().__init__(self._to_host, self._from_host)

    def _to_host(self, tensor: Tensor) -> Tensor | _OnHost:
        storage = tensor.untyped_storage()
        if storage.nbytes() < _SMALLEST or tensor in self._weights:
            return tensor.detach()
        if storage not in self._copies:
            source = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            pinned = backend_of(tensor.device).pinned
            copy = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=pinned)
            self._copies[storage] = copy.copy_(source, non_blocking=pinned)
        bytes_there, offset = self._copies[storage], int(tensor.storage_offset())
        return _OnHost(bytes_there, tensor.device, tensor.dtype, tensor.size(), tensor.stride(), offset)

    def _from_host(self, saved: Any) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        storage, device, dtype, size, stride, offset = saved
        there = storage.to(device, non_blocking=True).untyped_storage()
        return torch.empty(0, dtype=dtype, device=device).set_(there, offset, size, stride)
