"""Holding out by prompt."""

import random

import numpy as np

from simpo_cli.data.holdout import probe, split_by_prompt
from simpo_cli.data.pair import EncodedPair


def _pairs(keys: list[str]) -> list[EncodedPair]:
    one = np.ones(1, dtype=np.int32)
    return [EncodedPair(one, one, one, prompt_key=key, where=f"f:{i}") for i, key in enumerate(keys)]


def _keys(count: int, prompts: int) -> list[str]:
    random.seed(0)
    return [f"{random.randrange(prompts) * 7919 % 10007:05d}" for _ in range(count)]


def test_no_prompt_is_on_both_sides() -> None:
    train, held_out = split_by_prompt(_pairs(_keys(300, 90)), 60)
    assert {p.prompt_key for p in train}.isdisjoint(p.prompt_key for p in held_out)
    assert len(train) + len(held_out) == 300
    assert 60 <= len(held_out) <= 60 + 15  # at most one prompt's pairs too many


def test_a_share_and_a_count_are_told_apart() -> None:
    pairs = _pairs([f"{i:04d}" for i in range(200)])
    assert len(split_by_prompt(pairs, 0.05)[1]) == 10
    assert len(split_by_prompt(pairs, 1)[1]) == 1
    assert split_by_prompt(pairs, 0)[1] == []


def test_the_choice_does_not_depend_on_the_order_of_the_file() -> None:
    pairs = _pairs(_keys(200, 200))
    other = list(reversed(pairs))
    assert {p.where for p in split_by_prompt(pairs, 40)[1]} == {p.where for p in split_by_prompt(other, 40)[1]}


def test_the_probe_is_fixed() -> None:
    pairs = _pairs(_keys(200, 200))
    chosen = probe(pairs)
    assert len(chosen) == 64
    assert chosen == sorted(chosen) == probe(pairs)
    assert max(pairs[i].prompt_key for i in chosen) <= sorted(p.prompt_key for p in pairs)[63]
