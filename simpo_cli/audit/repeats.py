"""Which tokenized pairs are the same and which contradict each other, for the first screen of a run."""

from array import array
from collections.abc import Sequence

import numpy as np
import xxhash

from simpo_cli.audit.identity import PairIdentities
from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.store import prompt_keys_of


def repeated_and_contradictory(pairs: Sequence[EncodedPair]) -> tuple[int, int]:
    """How many pairs occurred before, and to how many the opposite occurs too, as training sees them.

    Only pairs that share their prompt are read, and 32 bytes are kept of each. A record that a recipe repeats is one.
    """
    _, prompt, count = np.unique(prompt_keys_of(pairs), return_inverse=True, return_counts=True)
    places, hashes = array("Q"), array("Q")
    for i in np.flatnonzero(count[prompt] > 1).tolist():
        pair = pairs[i]
        places.append(xxhash.xxh3_64_intdigest(pair.where.encode("utf-8", "surrogatepass")))
        responses = (xxhash.xxh3_64_intdigest(ids.tobytes()) for ids in (pair.chosen, pair.rejected))
        hashes.extend((prompt[i], *responses))
    _, first = np.unique(np.frombuffer(places, dtype=np.uint64), return_index=True)
    identities = PairIdentities(np.frombuffer(hashes, dtype=np.uint64).reshape(-1, 3)[first])
    return len(identities.duplicates()), len(identities.contradictions())
