"""Some of the pairs: named ones, a sample that no order of the file changes, and those held out by prompt."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpo_cli.data.encode import prompt_key
from simpo_cli.data.pair import EncodedPair, PreferencePair
from simpo_cli.data.store.pairs import prompt_keys_of
from simpo_cli.errors import UserError


class PromptSample:
    """The first pairs by hash of their prompt: the same ones however the file is sorted.

    Args:
        most: pairs that are held, at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: list[tuple[int, int, PreferencePair]] = []  # a heap with the last one by hash and number in front
        self._number = 0

    def add(self, pair: PreferencePair) -> None:
        """Take in one more pair."""
        self._number += 1
        entry = (-int(prompt_key(pair), 16), -self._number, pair)
        if len(self._held) < self._most:
            heapq.heappush(self._held, entry)
        elif entry[:2] > self._held[0][:2]:
            heapq.heapreplace(self._held, entry)

    @property
    def pairs(self) -> list[PreferencePair]:
        """Those of the sample, in their own order."""
        return [pair for _, _, pair in sorted(self._held, key=lambda entry: -entry[1])]


def named_pairs(pairs: Iterable[PreferencePair], names: Sequence[str]) -> Iterator[tuple[int, PreferencePair]]:
    """The pairs that a person names, each with its number, in the order of the pairs.

    Nothing is read behind the last of them.

    Args:
        pairs: all pairs.
        names: a pair's number (1 is the first), or its place as messages and findings write it: `prefs.jsonl:17`,
            `record 17`, `line 17`.

    Raises:
        UserError: there is no such pair.
    """
    wanted = list(dict.fromkeys(names))
    number = 0
    for number, pair in enumerate(pairs, start=1):
        meant = [name for name in wanted if _means(name, number, pair.where)]
        if meant:
            wanted = [name for name in wanted if name not in meant]
            yield number, pair
            if not wanted:
                return
    if wanted:
        raise UserError(
            f"there is no pair {wanted[0]} among the {number:,} that were read.",
            "Give a number from 1 on, or the place as simpo stats writes it, such as prefs.jsonl:17.",
        )


def _means(name: str, number: int, where: str) -> bool:
    digits = name.replace(",", "")
    if digits.isdigit():
        return int(digits) == number
    place = name.removeprefix("line ")
    ending = f":{place}" if place != name else f", {name}"
    return where == name or where.endswith((ending, f"/{name}"))


Positions = NDArray[np.int64]


def split_by_prompt(prompt_keys: NDArray[Any], holdout: int | float) -> tuple[Positions, Positions]:
    """Take whole prompts, in the order of their hashes, until enough pairs are held out.

    The choice does not depend on the order of the file or on the seed, so two runs on the same pairs hold out the same
    ones. With repeated prompts the count may end up to one prompt's pairs above what was asked for.

    Args:
        prompt_keys: (n,) the hash of each pair's prompt.
        holdout: a count of pairs (int) or a share of them (float, 0 to below 1).

    Returns:
        Positions of the pairs to train on, and of those held out, both rising.
    """
    wanted = round(holdout * len(prompt_keys)) if isinstance(holdout, float) else holdout
    _, prompts, counts = np.unique(prompt_keys, return_inverse=True, return_counts=True)
    held_before = np.cumsum(counts) - counts  # pairs of the prompts with lower hashes
    held_out = (held_before < wanted)[prompts]
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def probe(pairs: Sequence[EncodedPair], count: int = 64) -> list[int]:
    """Positions of the fixed pairs on which drift is measured: the first `count` by hash of the prompt."""
    by_hash = np.argsort(prompt_keys_of(pairs), kind="stable")
    return sorted(by_hash[:count].tolist())
