"""Encoded pairs on disk: made once, batch by batch, kept under a key of all that they depend on, read one by one.

A run holds 40 bytes of a pair in memory, whatever its length: where its tokens lie on the disk, how many there are, and
the hash of its prompt. Texts are held while their batch is encoded and no longer. What was made is kept in a cache,
so that the next run, the evaluation and the other processes of a run read what the first one made.
"""

from simpo_cli.data.store.cache import EncodedSource, Origin, cache_folder, encode_source
from simpo_cli.data.store.pairs import StoredPairs, highest_ids_of, lengths_of, prompt_keys_of

__all__ = [
    "EncodedSource",
    "Origin",
    "StoredPairs",
    "cache_folder",
    "encode_source",
    "highest_ids_of",
    "lengths_of",
    "prompt_keys_of",
]
