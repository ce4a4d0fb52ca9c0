"""Counting what tensors hold: the peak of the bytes that are alive, on any device and without an allocator's help."""

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Follows every tensor that an operation returns until its storage is freed, or given another size.

    What was there before is not counted, however it is used.

    Attributes:
        peak: most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._alive = 0
        self._known: dict[int, int] = {}  # bytes of storages, 0 of those that are not counted
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> "LiveBytes":
        resize = torch.UntypedStorage.resize_

        def resize_and_count(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            if (key := storage._cdata) in self._known:
                self._add(size - self._known[key])
                self._known[key] = size
            return result

        self._patch.setattr(torch.UntypedStorage, "resize_", resize_and_count)  # no operation that is dispatched
        entered: LiveBytes = super().__enter__()
        return entered

    def __exit__(self, *raised: Any) -> None:
        self._patch.undo()
        super().__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_iter((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self._known.setdefault(_key(tensor), 0)
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
        self._known[key] = storage.nbytes()
        self._add(storage.nbytes())

        def freed() -> None:
            self._alive -= self._known.pop(key)

        weakref.finalize(storage, freed)

    def _add(self, size: int) -> None:
        self._alive += size
        self.peak = max(self.peak, self._alive)


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
