"""Which pairs belong to step n: arithmetic on (seed, epoch, n), so there is no cursor to save, lose or restore."""

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapreplace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.store.pairs import (
    Lengths,
    Positions,
    StoredPairs,
    lengths_in_blocks,
    lengths_of,
    prompt_keys_in_blocks,
    prompt_keys_of,
)
from simpo_cli.recipe.schema import HeldOutPart

Packing = Literal["shared_prefix", "padded"]  # how pairs go through a model: each prompt once, or in padded rows
Sizes = NDArray[np.int32]
Places = NDArray[np.uint64]

_MASK = (1 << 64) - 1
_MOST_ORDERED = 1 << 22  # items: a longer epoch is put in order a part at a time, of half as many or more
_BLOCK = 1 << 15  # items whose places are in memory at once
_FULL = 0.99  # of the budget: no fuller micro-batch is looked for


def _splitmix64(values: Places) -> Places:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014): a bijection on 64-bit integers that mixes every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shuffled(num_items: int, seed: int, epoch: int, start: int = 0, stop: int | None = None) -> Positions:
    """The order of an epoch from `start` to `stop`, or all of it: indices below `num_items`, each once.

    A permutation of our own and not a library's generator, whose stream may change between versions: item i is placed
    by a keyed bijection of i, so no two items tie. The first bits of its place say in which part of the epoch an item
    comes, so a process holds the part that it is in, and not the order of all items. Do not write to the array.
    """
    key = int(_splitmix64(np.array([(seed * 0x9E3779B97F4A7C15 + epoch + 1) & _MASK], dtype=np.uint64))[0])
    stop = num_items if stop is None else min(stop, num_items)
    ends = _ends_of_parts(num_items, key)
    first = bisect_right(ends, start)
    parts = [_part(num_items, key, number) for number in range(first, bisect_left(ends, stop) + 1)]
    before = ends[first - 1] if first else 0
    return (parts[0] if len(parts) == 1 else np.concatenate(parts))[start - before : stop - before]


@lru_cache(maxsize=2)
def _ends_of_parts(num_items: int, key: int) -> list[int]:
    """(parts,) how many items come before the end of each part."""
    counts = sum(np.bincount(parts, minlength=_num_parts(num_items)) for _, _, parts in _places(num_items, key))
    ends: list[int] = np.cumsum(counts).tolist()
    return ends


@lru_cache(maxsize=2)
def _part(num_items: int, key: int, number: int) -> Positions:
    """The items of a part in their order."""
    items, places = [], []
    for first, of_block, parts in _places(num_items, key):
        here = np.flatnonzero(parts == number)
        items.append(first + here)
        places.append(of_block[here])
    part: Positions = np.concatenate(items)[np.argsort(np.concatenate(places))]
    part.setflags(write=False)
    return part


def _places(num_items: int, key: int) -> Iterator[tuple[int, Places, Positions]]:
    """The first item of each block, the places of its items, and the parts that they are in."""
    shift = np.uint64(64 - (_num_parts(num_items) - 1).bit_length())  # by all 64 bits where there is one part
    for first in range(0, num_items, _BLOCK):
        items = np.arange(first, min(first + _BLOCK, num_items), dtype=np.uint64)
        places = _splitmix64(items ^ np.uint64(key))
        yield first, places, (places >> shift).astype(np.int64)


def _num_parts(num_items: int) -> int:
    """A power of two, of parts of an epoch."""
    return 1 << ((num_items - 1) // _MOST_ORDERED).bit_length()


@dataclass(frozen=True)
class Plan:
    """The steps of a run: `pairs_per_step` pairs each, what is left in the last step of an epoch.

    `max_steps` is an earlier end, or None; `seed` fixes the order.
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
        return shuffled(self.num_pairs, self.seed, epoch, start, start + self.pairs_per_step)

    def fullest_microbatch(
        self, pairs: StoredPairs, budget: int, packing: Packing, num_ranks: int = 1
    ) -> list[EncodedPair]:
        """The pairs of the micro-batch that takes most of the budget in all of the run, or 99 % of it."""
        sizes = tokens_of_each(pairs, packing)
        fullest, most = np.arange(0), 0
        for step in range(self.num_steps):
            of_step = self.pairs_of(step)
            here = sizes[of_step].tolist()
            for cut in _dealt(here, num_ranks, budget, packing):
                for positions in cut:
                    if (tokens := _taken([here[i] for i in positions], packing)) > most:
                        fullest, most = of_step[positions], tokens
            if most >= _FULL * budget:
                break
        return list(pairs.select(fullest))

    def longest_pair(self, pairs: StoredPairs, packing: Packing) -> list[EncodedPair]:
        """The pair of all that are trained on that takes most of a micro-batch by itself."""
        sizes = tokens_of_each(pairs, packing)
        steps = range(min(self.num_steps, self.steps_per_epoch))
        longest = max((int(step[sizes[step].argmax()]) for step in map(self.pairs_of, steps)), key=sizes.__getitem__)
        return list(pairs.select(np.array([longest])))

    def epoch_after(self, step: int) -> float:
        """Passes over the data done when `step` steps are done, such as 0.25."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return epoch + min(step_in_epoch * self.pairs_per_step, self.num_pairs) / self.num_pairs

    def num_pairs_after(self, steps_done: int) -> int:
        """Different pairs that so many steps have trained on; all of them from the end of the first epoch on."""
        return min(self.num_pairs, steps_done * self.pairs_per_step)

    def is_due(self, steps_done: int, every: int | None) -> bool:
        """Whether something that happens every so many steps happens now."""
        return every is not None and steps_done % every == 0


def row_tokens_of_each(pairs: Sequence[EncodedPair]) -> Sizes:
    """(n,) tokens of the longer of a pair's two rows when each response stands behind its own copy of the prompt."""
    return _sizes(pairs, lambda lengths: lengths[:, 0] + np.maximum(lengths[:, 1], lengths[:, 2]))


def tokens_of_each(pairs: Sequence[EncodedPair], packing: Packing) -> Sizes:
    """(n,) what each pair by itself takes of a micro-batch's budget.

    With its prompt shared that is its tokens; padded it is two rows of the longer one's length.
    """
    if packing == "padded":
        return 2 * row_tokens_of_each(pairs)
    return _sizes(pairs, lambda lengths: lengths.sum(axis=1))


def _sizes(pairs: Sequence[EncodedPair], size: Callable[[Lengths], Lengths]) -> Sizes:
    """(n,) what follows of the lengths of each pair."""
    sizes, done = np.empty(len(pairs), dtype=np.int32), 0
    for lengths in lengths_in_blocks(pairs):
        sizes[done : done + len(lengths)] = size(lengths)
        done += len(lengths)
    return sizes


def microbatches(pairs: Sequence[EncodedPair], budget: int, packing: Packing) -> list[list[int]]:
    """Cut the pairs of a step into micro-batches that stay within the budget of tokens.

    The longest pair is in the first micro-batch, which is the one most likely not to fit in memory. A pair that is
    alone over the budget gets a micro-batch of its own. The cut never changes what a step computes, only how much of it
    is in memory at once.

    Args:
        budget: most tokens of a micro-batch, padding counted.

    Returns:
        Positions within `pairs`, each exactly once.
    """
    [cut] = deal(pairs, 1, budget, packing)
    return cut


def deal(pairs: Sequence[EncodedPair], num_ranks: int, budget: int, packing: Packing) -> list[list[list[int]]]:
    """Deal the pairs of a step to ranks, of which each gets as many tokens as the others as far as that goes.

    The longest pair goes first, each to the rank that has fewest tokens by then; where there are fewer pairs than
    ranks, some get none. It is arithmetic on lengths, so every rank finds the same shares.

    Returns:
        Of each rank the micro-batches of its share, cut as `microbatches` says: positions within `pairs`.
    """
    return _dealt(tokens_of_each(pairs, packing).tolist(), num_ranks, budget, packing)


def _dealt(sizes: Sequence[int], num_ranks: int, budget: int, packing: Packing) -> list[list[list[int]]]:
    cut = _best_fit if packing == "shared_prefix" else _rows_of_like_length
    return [cut(sizes, share, budget) for share in shares_of(sizes, num_ranks)]


def tokens_of_microbatch(pairs: Sequence[EncodedPair], packing: Packing) -> int:
    """What the pairs take of the budget together, padding counted."""
    return _taken(tokens_of_each(pairs, packing).tolist(), packing)


def _taken(sizes: Sequence[int], packing: Packing) -> int:
    return sum(sizes) if packing == "shared_prefix" else max(sizes) * len(sizes)


def shares_of(sizes: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Positions of sizes for each rank, the largest first, each to the rank that has least by then."""
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [(0, rank) for rank in range(num_ranks)]
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        load, rank = loads[0]
        shares[rank].append(i)
        heapreplace(loads, (load + sizes[i], rank))
    return shares


def fullest_microbatch(pairs: Sequence[EncodedPair], budget: int, packing: Packing) -> list[EncodedPair]:
    """The pairs of the micro-batch with most tokens."""
    return [pairs[i] for i in _fullest(pairs, budget, packing)[0]]


def _fullest(pairs: Sequence[EncodedPair], budget: int, packing: Packing) -> tuple[list[int], int]:
    """Positions of the pairs of the micro-batch with most tokens, and how many tokens these are."""
    tokens = lengths_of(pairs).sum(axis=1)
    filled = [(positions, int(tokens[positions].sum())) for positions in microbatches(pairs, budget, packing)]
    return max(filled, key=lambda one: one[1])


def _best_fit(sizes: Sequence[int], longest_first: Sequence[int], budget: int) -> list[list[int]]:
    """Best-fit decreasing: each pair, longest first, goes where it leaves least room."""
    cut: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, micro-batch), sorted
    for i in longest_first:
        at = bisect_left(room, (sizes[i], 0))
        if at < len(room):
            left, bin_ = room.pop(at)
            cut[bin_].append(i)
        else:
            left, bin_ = budget, len(cut)
            cut.append([i])
        insort(room, (left - sizes[i], bin_))
    return cut


def _rows_of_like_length(sizes: Sequence[int], longest_first: Sequence[int], budget: int) -> list[list[int]]:
    """Pairs of like length together, longest first, so that padding is least."""
    cut: list[list[int]] = []
    widest = 0  # two rows of the longest pair of the micro-batch
    for i in longest_first:
        if cut and widest * (len(cut[-1]) + 1) <= budget:
            cut[-1].append(i)
        else:
            cut.append([i])
            widest = sizes[i]
    return cut


# The pairs that are held out, and those on which drift is measured


def held_out_by_prompt(pairs: Sequence[EncodedPair], holdout: int | float) -> Positions:
    """Take whole prompts, in the order of their hashes, until enough pairs are held out.

    The choice does not depend on the order of the file or on the seed, so two runs on the same pairs hold out the same
    ones. With repeated prompts the count may end up to one prompt's pairs above what was asked for.

    Args:
        holdout: a count of pairs (int) or a share of them (float, 0 to below 1).

    Returns:
        Positions of the pairs that are held out, rising.
    """
    wanted = round(holdout * len(pairs)) if isinstance(holdout, float) else min(holdout, len(pairs))
    held_out, done = [np.arange(0)], 0
    if wanted:
        last = _nth_lowest(prompt_keys_in_blocks(pairs), wanted)
        for keys in prompt_keys_in_blocks(pairs):
            held_out.append(done + np.flatnonzero(keys <= last))
            done += len(keys)
    return np.concatenate(held_out)


def positions_of_part(pairs: StoredPairs, part: HeldOutPart) -> Positions:
    """Where the pairs of a part are, rising: about half of the prompts choose, and the others confirm.

    By a hash of the prompt's hash, whose lowest values are held out: so a prompt stays in its half whatever is held out
    beside it.
    """
    confirms = _splitmix64(prompt_keys_of(pairs)) & np.uint64(1)
    return np.flatnonzero(confirms == (part == "confirming")) if part != "all" else np.arange(len(pairs))


def _nth_lowest(blocks: Iterable[NDArray[Any]], n: int) -> Any:
    """The n-th lowest value of all blocks; of those before it, little more than 2 n are in memory."""
    lowest: list[NDArray[Any]] = []
    for block in blocks:
        lowest.append(block)
        if sum(map(len, lowest)) >= 2 * n + _BLOCK:
            lowest = [np.partition(np.concatenate(lowest), n - 1)[:n]]
    return np.partition(np.concatenate(lowest), n - 1)[n - 1]


def probe(pairs: Sequence[EncodedPair], count: int = 64) -> list[int]:
    """Positions of the fixed pairs on which drift is measured: the first `count` by hash of the prompt."""
    by_hash = np.argsort(prompt_keys_of(pairs), kind="stable")
    return sorted(by_hash[:count].tolist())
