"""Random tokenized pairs."""

import random

import numpy as np

from simpo_cli.data.pair import EncodedPair


def random_pairs(count: int, *, seed: int, vocab_size: int = 400, longest: int = 24) -> list[EncodedPair]:
    """Pairs of random ids (never a pad id's business: any id may occur) and random lengths from 1 up."""
    draw = random.Random(seed)

    def ids(most: int) -> np.ndarray:
        return np.array([draw.randrange(vocab_size) for _ in range(draw.randint(1, most))], dtype=np.int32)

    return [
        EncodedPair(ids(longest), ids(longest), ids(longest), prompt_key=f"{seed}-{i}", where=f"random:{i}")
        for i in range(count)
    ]
