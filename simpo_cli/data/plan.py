"""Which pairs belong to step n: arithmetic on (seed, epoch, n), so there is no cursor to save, lose or restore."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from simpo_cli.data.pair import EncodedPair

_MASK = (1 << 64) - 1


def _splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014): a bijection on 64-bit integers that mixes every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=2)
def shuffled(num_items: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch: (num_items,) indices, each once.

    A permutation of our own and not a library's generator, whose stream may change between versions: item i is placed
    by a keyed bijection of i, so no two items tie. The array is shared; do not write to it.
    """
    key = int(_splitmix64(np.array([(seed * 0x9E3779B97F4A7C15 + epoch + 1) & _MASK], dtype=np.uint64))[0])
    order = np.argsort(_splitmix64(np.arange(num_items, dtype=np.uint64) ^ np.uint64(key)), kind="stable")
    order.setflags(write=False)
    return order


@dataclass(frozen=True)
class Plan:
    """The steps of a run.

    Args:
        num_pairs: training pairs.
        pairs_per_step: pairs of one optimizer step; the last step of an epoch holds what is left.
        num_epochs: passes over the pairs.
        max_steps: an earlier end, or None.
        seed: fixes the order.
    """

    num_pairs: int
    pairs_per_step: int
    num_epochs: int
    max_steps: int | None
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_pairs / self.pairs_per_step)

    @property
    def num_steps(self) -> int:
        steps = self.steps_per_epoch * self.num_epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def pairs_of(self, step: int) -> NDArray[np.int64]:
        """Indices of the pairs of a step (0 is the first), in the order of the epoch."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start = step_in_epoch * self.pairs_per_step
        return shuffled(self.num_pairs, self.seed, epoch)[start : start + self.pairs_per_step]

    def epoch_after(self, step: int) -> float:
        """Passes over the data done when `step` steps are done, such as 0.25."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return epoch + min(step_in_epoch * self.pairs_per_step, self.num_pairs) / self.num_pairs

    @property
    def num_pairs_reached(self) -> int:
        """Different pairs that the run trains on; fewer than num_pairs when max_steps ends the first epoch."""
        return min(self.num_pairs, self.num_steps * self.pairs_per_step)

    def is_due(self, steps_done: int, every: int | None) -> bool:
        """Whether something that happens every so many steps happens now."""
        return every is not None and steps_done % every == 0


def row_tokens(pair: EncodedPair) -> int:
    """Tokens of the longer of the pair's two rows when each response stands behind its own copy of the prompt."""
    return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))


def microbatch_tokens(pair: EncodedPair) -> int:
    """What a pair by itself takes of a micro-batch's budget: two rows, padded to the longer."""
    return 2 * row_tokens(pair)


def microbatches(pairs: Sequence[EncodedPair], budget: int) -> list[list[int]]:
    """Cut the pairs of a step into micro-batches whose padded rows stay within the budget of tokens.

    Pairs of like length go together, longest first: the first micro-batch of a step is the one most likely not to fit,
    and padding is least. A pair that is alone over the budget gets a micro-batch of its own. The cut never changes what
    a step computes, only how much of it is in memory at once.

    Args:
        pairs: the pairs of one step.
        budget: most tokens of a micro-batch, both rows of each pair and their padding counted.

    Returns:
        Positions within `pairs`, each exactly once.
    """
    longest_first = sorted(range(len(pairs)), key=lambda i: (-row_tokens(pairs[i]), i))
    cut: list[list[int]] = []
    width = 0
    for i in longest_first:
        if cut and 2 * width * (len(cut[-1]) + 1) <= budget:
            cut[-1].append(i)
        else:
            cut.append([i])
            width = row_tokens(pairs[i])
    return cut
