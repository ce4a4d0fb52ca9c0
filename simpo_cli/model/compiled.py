"""The decoder's layers as compiled code.

Each layer is compiled by itself with its sizes left open, and what the pairs of a pack are is in tensors (see
`packed.PackLayout`). So layers of a kind and micro-batches of any size share one graph, and the compiler's work does
not grow with the model's depth.
"""

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn


class CompiledLayer(NamedTuple):
    """A layer that can be run as compiled code. The module stays what it is: its names, its weights, its copies."""

    layer: nn.Module
    strict: bool

    def place(self) -> None:
        # what an equal call compiled before is used again
        self.layer.compile(dynamic=True, fullgraph=self.strict)

    def restore(self) -> None:
        self.layer._compiled_call_impl = None


def compiled_layers(layers: Iterable[nn.Module], *, strict: bool) -> list[CompiledLayer]:
    """Every layer ready to be compiled; nothing is placed yet."""
    return [CompiledLayer(layer, strict) for layer in layers]
