"""Which pairs are the same, which contradict each other and which go in circles, in 24 bytes a pair.

A pair is known by 64-bit hashes of its prompt and its two responses. At a million pairs the chance that any two
different ones share a hash is under one in ten million.
"""

import numpy as np
import xxhash
from numpy.typing import NDArray

from simpo_cli.audit.signatures import mixed
from simpo_cli.data.load import prompt_messages
from simpo_cli.data.pair import PreferencePair

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

_STRIPPED = 3  # times that the ends of chains are taken off before circles are looked for


def _hashed(text: str, seed: int = 0) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"), seed)


def prompt_hash(pair: PreferencePair) -> int:
    """A hash of the prompt; plain text and the same text as one user turn are the same prompt."""
    turns = prompt_messages(pair.prompt)
    return _hashed("".join([f"{turn.role} {len(turn.content)} {turn.content}" for turn in turns]))


def pair_hashes(pair: PreferencePair) -> tuple[int, int, int]:
    """Hashes of the prompt, the chosen and the rejected response.

    With other tools, or other variables for the template, the same response is another.
    """
    around = (
        0 if pair.tools is None and pair.template_kwargs is None else _hashed(repr((pair.tools, pair.template_kwargs)))
    )
    return prompt_hash(pair), _hashed(pair.chosen, around), _hashed(pair.rejected, around)


class PairIdentities:
    """Pairs by their hashes.

    Args:
        hashes: (n, 3) of prompt, chosen and rejected response of each pair.

    Attributes:
        prompts, chosen, rejected: (n,) the hashes by part.
    """

    def __init__(self, hashes: Hashes) -> None:
        self.prompts, self.chosen, self.rejected = hashes.T

    def duplicates(self) -> Places:
        """Places of pairs that occurred before: the same prompt, chosen and rejected."""
        pairs = _joined(self.prompts, self.chosen, self.rejected)
        _, first = np.unique(pairs, return_index=True)
        later = np.ones(len(pairs), dtype=bool)
        later[first] = False
        return np.flatnonzero(later)

    def contradictions(self) -> Places:
        """Places of pairs whose opposite occurs too: the same answers to the same prompt, preferred the other way."""
        low, high = np.minimum(self.chosen, self.rejected), np.maximum(self.chosen, self.rejected)
        _, group = np.unique(_joined(self.prompts, low, high), return_inverse=True)
        size = np.bincount(group)
        one_way = np.bincount(group, weights=self.chosen < self.rejected)
        return np.flatnonzero((one_way[group] > 0) & (one_way[group] < size[group]))

    def identical(self) -> Places:
        """Places of pairs whose two responses are the same."""
        return np.flatnonzero(self.chosen == self.rejected)

    def cycles(self) -> Places:
        """Places of pairs on a circle of three or more responses: A over B, B over C, C over A.

        Contradictory pairs, which are circles of two, are set aside first.
        """
        is_left = self.chosen != self.rejected
        is_left[self.contradictions()] = False
        left = np.flatnonzero(is_left)
        better, worse = _joined(self.prompts, self.chosen)[left], _joined(self.prompts, self.rejected)[left]
        for _ in range(_STRIPPED):  # a response that never wins, or never loses, is on no circle; mostly that is all
            stays = np.isin(better, worse) & np.isin(worse, better)
            left, better, worse = left[stays], better[stays], worse[stays]
        if not len(left):
            return left
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        responses, ends = np.unique(np.concatenate([better, worse]), return_inverse=True)
        winners, losers = ends[: len(left)], ends[len(left) :]
        beats = coo_array((np.ones(len(left), dtype=np.int32), (winners, losers)), shape=(len(responses),) * 2)
        _, circle = connected_components(beats.tocsr(), directed=True, connection="strong")
        on_a_circle: Places = left[circle[winners] == circle[losers]]
        return on_a_circle


def _joined(*hashes: Hashes) -> Hashes:
    """One hash of several, in their order."""
    joined = np.zeros_like(hashes[0])
    for one in hashes:
        joined = mixed(joined + one + np.uint64(0x9E3779B97F4A7C15))
    return joined
