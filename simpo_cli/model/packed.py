"""A micro-batch of pairs on the device: every prompt once, every token real, no padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simpo_cli.data.pair import EncodedPair


@dataclass(frozen=True, slots=True)
class PackedPairs:
    """Pairs laid end to end, each as prompt, chosen, rejected.

    Attributes:
        tokens: (T,) int64 ids of all pairs.
        prompt_lengths: (P,) int64 on the CPU.
        response_lengths: (P, 2) int64 on the CPU: chosen, rejected; all above 0.
    """

    tokens: Tensor
    prompt_lengths: Tensor
    response_lengths: Tensor

    @property
    def num_pairs(self) -> int:
        return len(self.prompt_lengths)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def targets(self) -> Tensor:
        """(N,) ids of the response tokens: chosen and rejected of the first pair, of the second, and so on."""
        pieces = []
        start = 0
        for prompt, responses in zip(self.prompt_lengths.tolist(), self.response_lengths.sum(1).tolist(), strict=True):
            pieces.append(self.tokens[start + prompt : start + prompt + responses])
            start += prompt + responses
        return torch.cat(pieces)


def pack(pairs: Sequence[EncodedPair], device: torch.device) -> PackedPairs:
    """Lay pairs end to end and move them to the device."""
    flat = np.concatenate([part for pair in pairs for part in (pair.prompt, pair.chosen, pair.rejected)])
    return PackedPairs(
        tokens=torch.from_numpy(flat).to(device, torch.int64),
        prompt_lengths=torch.tensor([len(pair.prompt) for pair in pairs]),
        response_lengths=torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in pairs]),
    )
