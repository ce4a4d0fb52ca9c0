"""Which tokenized pairs are the same and which contradict each other, for the first screen of a run."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.store import prompt_keys_of


def repeated_and_contradictory(pairs: Sequence[EncodedPair]) -> tuple[int, int]:
    """How many pairs occurred before, and to how many the opposite occurs too, as training sees them.

    Only pairs that share their prompt are read, and 24 bytes are kept of each. A record that a recipe repeats is one.
    """
    _, prompt, count = np.unique(prompt_keys_of(pairs), return_inverse=True, return_counts=True)
    places, pairs_seen, opposites = array("Q"), array("Q"), array("Q")
    for i in np.flatnonzero(count[prompt] > 1).tolist():
        pair = pairs[i]
        key, chosen, rejected = (
            pair.prompt_key.encode(),
            _digest(pair.chosen.tobytes()),
            _digest(pair.rejected.tobytes()),
        )
        places.append(_number(pair.where.encode("utf-8", "surrogatepass")))
        pairs_seen.append(_number(key + chosen + rejected))
        opposites.append(_number(key + rejected + chosen))
    _, first = np.unique(np.frombuffer(places, dtype=np.uint64), return_index=True)
    seen, opposite = (np.frombuffer(hashes, dtype=np.uint64)[first] for hashes in (pairs_seen, opposites))
    return len(seen) - len(np.unique(seen)), int(np.isin(opposite, seen).sum())


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=8).digest()


def _number(data: bytes) -> int:
    return int.from_bytes(_digest(data), "little")
