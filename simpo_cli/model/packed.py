"""A micro-batch of pairs on the device: every prompt once, every token real, no padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simpo_cli.data.pair import EncodedPair


class PairSpan(NamedTuple):
    """Where one pair lies in the pack: prompt, chosen and rejected side by side from `start`.

    The last token of a response is predicted and never read, so it is not in the pack: `chosen` and `rejected` are one
    less than the responses' lengths, and may be 0.
    """

    start: int
    prompt: int
    chosen: int
    rejected: int

    @property
    def end(self) -> int:
        return self.start + self.prompt + self.chosen + self.rejected


@dataclass(frozen=True, slots=True)
class PackedPairs:
    """Pairs laid end to end, each as prompt, chosen, rejected.

    Attributes:
        tokens: (T,) int64 ids that the model reads.
        positions: (T,) int64; a response's tokens stand where they would stand alone behind the prompt.
        predicting: (N,) int64 indices into `tokens`: the token before each response token, the prompt's last one for
            the first; chosen and rejected of the first pair, then of the second, and so on.
        targets: (N,) int64 ids of the response tokens, in the same order.
        spans: where each pair lies.
        response_lengths: (P, 2) int64 on the CPU: scored tokens of chosen and rejected, all above 0.
    """

    tokens: Tensor
    positions: Tensor
    predicting: Tensor
    targets: Tensor
    spans: tuple[PairSpan, ...]
    response_lengths: Tensor


def pack(pairs: Sequence[EncodedPair], device: torch.device) -> PackedPairs:
    """Lay pairs end to end and move them to the device."""
    spans: list[PairSpan] = []
    tokens: list[NDArray[Any]] = []
    positions: list[NDArray[Any]] = []
    predicting: list[NDArray[Any]] = []
    targets: list[NDArray[Any]] = []
    start = 0
    for pair in pairs:
        span = PairSpan(start, len(pair.prompt), len(pair.chosen) - 1, len(pair.rejected) - 1)
        spans.append(span)
        tokens += [pair.prompt, pair.chosen[:-1], pair.rejected[:-1]]
        positions.append(np.arange(span.prompt))
        first = start + span.prompt
        for length in (span.chosen, span.rejected):
            positions.append(np.arange(span.prompt, span.prompt + length))
            predicting += [np.array([start + span.prompt - 1]), np.arange(first, first + length)]
            first += length
        targets += [pair.chosen, pair.rejected]
        start = span.end

    def on_device(pieces: list[NDArray[Any]]) -> Tensor:
        return torch.from_numpy(np.concatenate(pieces).astype(np.int64)).to(device)

    return PackedPairs(
        tokens=on_device(tokens),
        positions=on_device(positions),
        predicting=on_device(predicting),
        targets=on_device(targets),
        spans=tuple(spans),
        response_lengths=torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in pairs]),
    )
