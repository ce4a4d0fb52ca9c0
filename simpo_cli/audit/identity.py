"""Which pairs are the same, and which contradict each other, in 32 bytes a pair.

A pair is known by 64-bit hashes of its prompt and its two responses. At a million pairs the chance that any two
different ones share a hash is under one in ten million.
"""

from array import array
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from simpo_cli.data.load import prompt_messages
from simpo_cli.data.pair import PreferencePair

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]


def _hashed(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def _hashed_text(text: str) -> int:
    return _hashed(text.encode("utf-8", "surrogatepass"))


class PairIdentities:
    """Collects the hashes of pairs, in their order."""

    def __init__(self) -> None:
        self._prompts, self._pairs, self._sides = array("Q"), array("Q"), array("Q")
        self._chosen_first = bytearray()

    def add(self, pair: PreferencePair) -> None:
        """Take in one more pair."""
        turns = prompt_messages(pair.prompt)
        prompt = _hashed_text("".join(f"{turn.role} {len(turn.content)} {turn.content}" for turn in turns))
        chosen, rejected = _hashed_text(pair.chosen), _hashed_text(pair.rejected)
        self._prompts.append(prompt)
        self._pairs.append(_combined(prompt, chosen, rejected))
        self._sides.append(_combined(prompt, min(chosen, rejected), max(chosen, rejected)))
        self._chosen_first.append(chosen < rejected)

    @property
    def prompts(self) -> Hashes:
        """(n,) a hash of each pair's prompt; plain text and the same text as one user turn are the same prompt."""
        return np.frombuffer(self._prompts, dtype=np.uint64)

    def duplicates(self) -> Places:
        """Places of pairs that occurred before: the same prompt, chosen and rejected."""
        pairs = np.frombuffer(self._pairs, dtype=np.uint64)
        _, first = np.unique(pairs, return_index=True)
        later = np.ones(len(pairs), dtype=bool)
        later[first] = False
        return np.flatnonzero(later)

    def contradictions(self) -> Places:
        """Places of pairs whose opposite occurs too: the same answers to the same prompt, preferred the other way."""
        sides = np.frombuffer(self._sides, dtype=np.uint64)
        chosen_first = np.frombuffer(self._chosen_first, dtype=np.uint8)
        _, group = np.unique(sides, return_inverse=True)
        size = np.bincount(group)
        one_way = np.bincount(group, weights=chosen_first)
        return np.flatnonzero((one_way[group] > 0) & (one_way[group] < size[group]))


def _combined(prompt: int, first: int, second: int) -> int:
    return _hashed(prompt.to_bytes(8, "little") + first.to_bytes(8, "little") + second.to_bytes(8, "little"))


class PlaceList:
    """The places of many pairs (`prefs.jsonl:17`), held as file and number."""

    def __init__(self) -> None:
        self._prefixes: dict[str, int] = {}
        self._prefix, self._number = array("q"), array("q")

    def add(self, where: str) -> None:
        """Take in the place of one more pair."""
        prefix = where.rstrip("0123456789")
        digits = where[len(prefix) :]
        if not digits or len(digits) > 18 or (digits[0] == "0" and len(digits) > 1):
            prefix, digits = where, "-1"  # no number that would come back as it was
        self._prefix.append(self._prefixes.setdefault(prefix, len(self._prefixes)))
        self._number.append(int(digits))

    def __getitem__(self, i: int) -> str:
        prefix = list(self._prefixes)[self._prefix[i]]
        return prefix if self._number[i] < 0 else f"{prefix}{self._number[i]}"
