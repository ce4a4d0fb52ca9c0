"""Holding out by prompt."""

import random

import numpy as np

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.selection import probe, split_by_prompt


def _pairs(keys: list[str]) -> list[EncodedPair]:
    one = np.ones(1, dtype=np.int32)
    return [EncodedPair(one, one, one, prompt_key=key, where=f"f:{i}") for i, key in enumerate(keys)]


def _keys(count: int, prompts: int) -> list[str]:
    random.seed(0)
    return [f"{random.randrange(prompts) * 7919 % 10007:05d}" for _ in range(count)]


def _split(keys: list[str], holdout: int | float) -> tuple[list[str], list[str]]:
    train, held_out = split_by_prompt(np.array(keys), holdout)
    return [keys[i] for i in train], [keys[i] for i in held_out]


def test_no_prompt_is_on_both_sides() -> None:
    train, held_out = _split(_keys(300, 90), 60)
    assert set(train).isdisjoint(held_out)
    assert len(train) + len(held_out) == 300
    assert 60 <= len(held_out) <= 60 + 15  # at most one prompt's pairs too many


def test_the_prompts_with_the_lowest_hashes_are_held_out() -> None:
    """Against a count by hand: prompts by hash, one after the other, until enough pairs are out."""
    keys = _keys(300, 90)
    for holdout in (0, 1, 60, 299, 300, 999, 0.0, 0.2, 0.999):
        wanted = round(holdout * 300) if isinstance(holdout, float) else holdout
        out: set[str] = set()
        for key in sorted(set(keys)):
            if sum(k in out for k in keys) < wanted:
                out.add(key)
        expected = [k for k in keys if k not in out], [k for k in keys if k in out]
        assert _split(keys, holdout) == expected
        numbers = np.array([int(key) for key in keys], dtype=np.uint64)
        assert [len(side) for side in split_by_prompt(numbers, holdout)] == [len(side) for side in expected]


def test_a_share_and_a_count_are_told_apart() -> None:
    keys = [f"{i:04d}" for i in range(200)]
    assert len(_split(keys, 0.05)[1]) == 10
    assert len(_split(keys, 1)[1]) == 1
    assert _split(keys, 0)[1] == []


def test_the_choice_does_not_depend_on_the_order_of_the_file() -> None:
    keys = _keys(200, 200)
    assert sorted(_split(keys, 40)[1]) == sorted(_split(keys[::-1], 40)[1])


def test_the_probe_is_fixed() -> None:
    pairs = _pairs(_keys(200, 200))
    chosen = probe(pairs)
    assert len(chosen) == 64
    assert chosen == sorted(chosen) == probe(pairs)
    assert max(pairs[i].prompt_key for i in chosen) <= sorted(p.prompt_key for p in pairs)[63]
