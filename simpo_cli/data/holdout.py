"""Holding pairs out by prompt: all pairs of a prompt go to one side, and the prompt's hash alone says which."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.store.pairs import prompt_keys_of

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
