"""Encoded pairs on disk: made once, batch by batch, kept under a key of all that they depend on, read one by one.

Beside the tokens of a pair lie 40 bytes on what is asked of all pairs at once: where its tokens are, how many, and the
hash of its prompt. A run holds neither. Texts are held while their batch is encoded and no longer. What was made is
kept in a cache, so that the next run, the evaluation and the other processes of a run read what the first one made.
"""

from simpo_cli.data.store.cache import EncodedSource, Origin, cache_folder, encode_source
from simpo_cli.data.store.pairs import (
    StoredPairs,
    highest_ids_of,
    lengths_in_blocks,
    lengths_of,
    positions_of_prompts,
    prompt_keys_in_blocks,
    prompt_keys_of,
    repeated_prompt_keys_of,
)

__all__ = [
    "EncodedSource",
    "Origin",
    "StoredPairs",
    "cache_folder",
    "encode_source",
    "highest_ids_of",
    "lengths_in_blocks",
    "lengths_of",
    "positions_of_prompts",
    "prompt_keys_in_blocks",
    "prompt_keys_of",
    "repeated_prompt_keys_of",
]
