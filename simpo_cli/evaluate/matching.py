"""Which held-out pairs two lists have in common: by what they say, wherever their records stand."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from simpo_cli.data.pair import EncodedPair


@dataclass(frozen=True, slots=True)
class Matched:
    """Pairs that two lists share.

    Attributes:
        positions: (in the first, in the second) of each, in the order of the first.
        swapped: pairs of the first that the second has only with chosen and rejected the other way round; they are
            other pairs, and not among the positions.
    """

    positions: Sequence[tuple[int, int]]
    swapped: int


def match(first: Sequence[str], second: Sequence[str]) -> Matched:
    """Match pairs by their digests (see `data.encode.pair_key`); one that is there several times, in its order."""
    positions = match_in_order(first, second)
    ours, theirs = {i for i, _ in positions}, set(second)
    swapped = sum(i not in ours and key[16:] + key[:16] in theirs for i, key in enumerate(first))
    return Matched(positions, swapped)


@dataclass(frozen=True)
class Aligned:
    """The pairs that two lists have in common.

    Attributes:
        first, second: positions in each, in the order of the first.
        same_tokens: whether both have the same tokens there.
        swapped: see `Matched`.
    """

    first: Sequence[int]
    second: Sequence[int]
    same_tokens: bool
    swapped: int


def align(first: Sequence[EncodedPair], second: Sequence[EncodedPair]) -> Aligned:
    """Match two lists of pairs, and look whether they were cut into the same tokens."""
    matched = match([pair.pair_key for pair in first], [pair.pair_key for pair in second])
    ours, theirs = ([both[side] for both in matched.positions] for side in (0, 1))
    same = all(_same_tokens(first[i], second[j]) for i, j in matched.positions)
    return Aligned(ours, theirs, same, matched.swapped)


def _same_tokens(one: EncodedPair, other: EncodedPair) -> bool:
    return all(np.array_equal(getattr(one, part), getattr(other, part)) for part in ("prompt", "chosen", "rejected"))


def match_in_order(first: Sequence[Hashable], second: Sequence[Hashable]) -> list[tuple[int, int]]:
    """(position in the first, in the second) of equal keys; the n-th of a key belongs to the n-th of it there."""
    places = {key: position for position, key in enumerate(_counted(second))}
    return [(position, places[key]) for position, key in enumerate(_counted(first)) if key in places]


def swapped_in_words(swapped: int) -> str:
    """What is to be said of pairs whose labels differ; nothing where there are none."""
    if not swapped:
        return ""
    pairs = "1 pair has" if swapped == 1 else f"{swapped:,} pairs have"
    return f"{pairs} chosen and rejected the other way round in the two: they are not the same pairs and are left out."


def _counted(keys: Sequence[Hashable]) -> list[tuple[Hashable, int]]:
    """Each key with how often it came before."""
    seen: Counter[Hashable] = Counter()
    counted = []
    for key in keys:
        counted.append((key, seen[key]))
        seen[key] += 1
    return counted
