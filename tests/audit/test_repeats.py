"""Repeats and contradictions of tokenized pairs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simpo_cli.audit.tokenized import repeated_and_contradictory
from simpo_cli.data.pair import EncodedPair

SIDES = st.sampled_from([(1, 2), (2, 1), (2, 3), (3, 2)])
PAIRS = st.lists(st.builds(lambda prompt, sides: (prompt, *sides), st.sampled_from("ab"), SIDES), max_size=10)


def encoded(number: int, prompt: str, chosen: int, rejected: int) -> EncodedPair:
    ids = (np.array([n, 9], dtype=np.int32) for n in (1, chosen, rejected))
    return EncodedPair(*ids, prompt_key=prompt, where=f"f:{number}")


@given(PAIRS)
def test_against_the_obvious_way(drawn: list[tuple[str, int, int]]) -> None:
    pairs = [encoded(number, *parts) for number, parts in enumerate(drawn)]
    opposed = sum((prompt, rejected, chosen) in drawn for prompt, chosen, rejected in drawn)
    assert repeated_and_contradictory(pairs) == (len(drawn) - len(set(drawn)), opposed)
    # a source that the recipe repeats
    assert repeated_and_contradictory([*pairs, *pairs]) == (len(drawn) - len(set(drawn)), opposed)
