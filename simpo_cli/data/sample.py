"""Some of the pairs instead of all: those that a person names, the first ones, or a sample that no order can change."""

import heapq
from collections.abc import Iterable, Iterator, Sequence

from simpo_cli.data.encode import prompt_key
from simpo_cli.data.pair import PreferencePair
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
