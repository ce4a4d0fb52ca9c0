"""Holding pairs out by prompt: all pairs of a prompt go to one side, and the prompt's hash alone says which."""

from collections.abc import Sequence

from simpo_cli.data.pair import EncodedPair


def split_by_prompt(pairs: Sequence[EncodedPair], holdout: int | float) -> tuple[list[EncodedPair], list[EncodedPair]]:
    """Take whole prompts, in the order of their hashes, until enough pairs are held out.

    The choice does not depend on the order of the file or on the seed, so two runs on the same pairs hold out the same
    ones. With repeated prompts the count may end up to one prompt's pairs above what was asked for.

    Args:
        pairs: all pairs.
        holdout: a count of pairs (int) or a share of them (float, 0 to below 1).

    Returns:
        (train, held out), each in the order of `pairs`.
    """
    wanted = round(holdout * len(pairs)) if isinstance(holdout, float) else holdout
    by_prompt: dict[str, int] = {}
    for pair in pairs:
        by_prompt[pair.prompt_key] = by_prompt.get(pair.prompt_key, 0) + 1
    held_out: set[str] = set()
    count = 0
    for key in sorted(by_prompt):
        if count >= wanted:
            break
        held_out.add(key)
        count += by_prompt[key]
    return (
        [pair for pair in pairs if pair.prompt_key not in held_out],
        [pair for pair in pairs if pair.prompt_key in held_out],
    )


def probe(pairs: Sequence[EncodedPair], count: int = 64) -> list[int]:
    """Positions of the fixed pairs on which drift is measured: the first `count` by hash of the prompt."""
    return sorted(sorted(range(len(pairs)), key=lambda i: (pairs[i].prompt_key, i))[:count])
