"""Counting what tensors hold: the peak of the bytes that are alive, on any device and without an allocator's help."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Follows every tensor that an operation returns until its storage is freed.

    What was there before is not counted, however it is used.

    Attributes:
        peak: most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._alive = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_iter((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self._known.add(_key(tensor))
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor)
        return result

    def count(self, tensor: torch.Tensor) -> None:
        """Count a tensor from now on, if that has not begun."""
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self._alive += size
        self.peak = max(self.peak, self._alive)

        def freed() -> None:
            self._alive -= size
            self._known.discard(key)

        weakref.finalize(storage, freed)


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
