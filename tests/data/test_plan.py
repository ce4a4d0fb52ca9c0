"""The order of the pairs: each once an epoch, known from numbers alone; and those held out, by prompt."""

import math
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpo_cli.data import plan as plans
from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import (
    Packing,
    Plan,
    deal,
    held_out_by_prompt,
    microbatches,
    probe,
    row_tokens_of_each,
    shuffled,
    tokens_of_each,
    tokens_of_microbatch,
)
from simpo_cli.data.store import pairs as store_pairs
from tests.data.pair_files import written

LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=30)


def _pair(prompt: int, chosen: int, rejected: int, key: str = "k") -> EncodedPair:
    return EncodedPair(*(np.arange(n, dtype=np.int32) for n in (prompt, chosen, rejected)), prompt_key=key, where="f:1")


@given(n=st.integers(1, 300), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 5))
def test_an_epoch_holds_every_pair_once(n: int, seed: int, epoch: int) -> None:
    assert sorted(shuffled(n, seed, epoch).tolist()) == list(range(n))


def test_the_order_is_fixed_for_ever() -> None:
    """A change of these numbers changes every run: resume and published seeds depend on them."""
    assert shuffled(10, 42, 0).tolist() == [2, 5, 9, 1, 6, 0, 8, 7, 4, 3]
    assert shuffled(10, 42, 1).tolist() != shuffled(10, 42, 0).tolist()
    assert shuffled(10, 43, 0).tolist() != shuffled(10, 42, 0).tolist()


def _whole_order(n: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch by places that are computed one by one, in Python's integers."""
    mask = 2**64 - 1

    def mixed(value: int) -> int:
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & mask
        value = (value ^ value >> 27) * 0x94D049BB133111EB & mask
        return value ^ value >> 31

    key = mixed((seed * 0x9E3779B97F4A7C15 + epoch + 1) & mask)
    return sorted(range(n), key=lambda i: mixed(i ^ key))


@pytest.mark.parametrize(("n", "most", "num_parts"), [(500, 500, 1), (501, 500, 2), (640, 100, 8), (90, 2, 64)])
def test_an_epoch_found_part_by_part_is_the_one_that_is_sorted_whole(
    n: int, most: int, num_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "_MOST_ORDERED", most)
    monkeypatch.setattr(plans, "_BLOCK", 60)
    for name in ("_part", "_ends_of_parts"):  # without what is kept of other tests
        monkeypatch.setattr(plans, name, getattr(plans, name).__wrapped__)
    assert plans._num_parts(n) == num_parts
    whole = _whole_order(n, 7, 3)
    assert shuffled(n, 7, 3).tolist() == whole
    plan = Plan(num_pairs=n, pairs_per_step=35, num_epochs=4, max_steps=None, seed=7)
    steps = range(3 * plan.steps_per_epoch, plan.num_steps)
    assert [i for step in steps for i in plan.pairs_of(step).tolist()] == whole


def test_a_rank_holds_a_part_of_a_long_epoch() -> None:
    """Of one that would take 80 MB in one piece."""
    tracemalloc.start()
    some = shuffled(10_000_000, 1, 0, 6_000_000, 6_000_128)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(some.tolist())) == 128
    assert held < 25e6


def test_the_order_is_random_enough() -> None:
    """Mean position of each item over many seeds is the middle, and neighbours do not stay together."""
    n, seeds = 20, 2000
    positions = np.zeros(n)
    neighbours = 0
    for seed in range(seeds):
        order = shuffled(n, seed, 0)
        positions[order] += np.arange(n)
        neighbours += int((np.abs(np.diff(order)) == 1).sum())
    middle, deviation = (n - 1) / 2, math.sqrt((n * n - 1) / 12 / seeds)
    assert np.abs(positions / seeds - middle).max() < 4.5 * deviation
    assert neighbours / seeds == pytest.approx(2 * (n - 1) / n, abs=0.15)


@given(n=st.integers(1, 60), per_step=st.integers(1, 20), epochs=st.integers(1, 3), most=st.none() | st.integers(1, 30))
def test_steps_cover_the_epochs(n: int, per_step: int, epochs: int, most: int | None) -> None:
    plan = Plan(num_pairs=n, pairs_per_step=per_step, num_epochs=epochs, max_steps=most, seed=1)
    assert plan.steps_per_epoch == -(-n // per_step)
    seen = [i for step in range(plan.num_steps) for i in plan.pairs_of(step).tolist()]
    if most is None or most >= plan.steps_per_epoch * epochs:
        assert sorted(seen) == sorted(list(range(n)) * epochs)
        assert plan.epoch_after(plan.num_steps) == epochs
    assert len(set(seen)) == plan.num_pairs_after(plan.num_steps)
    sizes = [len(plan.pairs_of(step)) for step in range(plan.num_steps)]
    assert all(size == per_step or (step + 1) % plan.steps_per_epoch == 0 for step, size in enumerate(sizes))
    assert all(size >= 1 for size in sizes)


@given(lengths=LENGTHS, budget=st.integers(1, 400))
def test_microbatches_hold_every_pair_once_within_the_budget(lengths: list[tuple[int, int, int]], budget: int) -> None:
    pairs = [_pair(*three) for three in lengths]
    cut = microbatches(pairs, budget, "padded")
    rows = row_tokens_of_each(pairs).tolist()
    assert sorted(i for piece in cut for i in piece) == list(range(len(pairs)))
    for piece in cut:
        padded = 2 * len(piece) * max(rows[i] for i in piece)
        assert padded <= budget or len(piece) == 1
    assert rows[cut[0][0]] == max(rows)  # the one that may not fit comes first


@given(lengths=LENGTHS, budget=st.integers(1, 400))
def test_packed_microbatches_hold_every_pair_once_and_are_well_filled(
    lengths: list[tuple[int, int, int]], budget: int
) -> None:
    pairs = [_pair(*three) for three in lengths]
    cut = microbatches(pairs, budget, "shared_prefix")
    assert sorted(i for piece in cut for i in piece) == list(range(len(pairs)))
    filled = [sum(pairs[i].num_tokens for i in piece) for piece in cut]
    assert all(tokens <= budget or len(piece) == 1 for tokens, piece in zip(filled, cut, strict=True))
    assert max(map(sum, lengths)) == pairs[cut[0][0]].num_tokens
    # best fit never opens a micro-batch for a pair that another had room for, so no two would fit into one
    smallest = sorted(filled)[:2]
    assert len(filled) < 2 or sum(smallest) > budget


def test_tokens_of_a_pair() -> None:
    pairs = [_pair(10, 3, 5), _pair(1, 4, 2)]
    assert row_tokens_of_each(pairs).tolist() == [15, 5]
    assert tokens_of_each(pairs, "padded").tolist() == [2 * 15, 2 * 5]
    assert tokens_of_each(pairs, "shared_prefix").tolist() == [18, 7]


@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize("packing", ["shared_prefix", "padded"])
def test_the_fullest_microbatch_and_the_longest_pair_are_those_of_all_steps(
    tmp_path: Path, packing: Packing, num_ranks: int
) -> None:
    """Against every micro-batch of the plan, whose tokens are added up by hand; what comes late counts as well."""
    plan = Plan(num_pairs=900, pairs_per_step=3, num_epochs=1, max_steps=290, seed=3)
    draw = random.Random(5)
    pairs = [_pair(draw.randint(2, 9), draw.randint(1, 9), draw.randint(1, 9), f"{i:016x}") for i in range(900)]
    for step, length in ((280, 30), (295, 50)):  # of which the latter is never trained on
        pairs[plan.pairs_of(step)[1]] = _pair(length, length, length, f"{step:x}")
    stored = written(tmp_path / "pairs", pairs)

    def taken(cut: list[EncodedPair]) -> int:
        if packing == "shared_prefix":
            return sum(pair.num_tokens for pair in cut)
        return 2 * len(cut) * max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in cut)

    def most_of(budget: int) -> int:
        steps = [[pairs[i] for i in plan.pairs_of(step)] for step in range(plan.num_steps)]
        cuts = (
            [step[i] for i in cut]
            for step in steps
            for share in deal(step, num_ranks, budget, packing)
            for cut in share
        )
        return max(map(taken, cuts))

    for budget in (70, 1000):
        fullest = plan.fullest_microbatch(stored, budget, packing, num_ranks)
        assert 0.99 * most_of(budget) <= taken(fullest) == tokens_of_microbatch(fullest, packing) <= most_of(budget)
    [longest] = plan.longest_pair(stored, packing)
    assert len(longest.prompt) == 30
    whole = Plan(num_pairs=900, pairs_per_step=3, num_epochs=2, max_steps=None, seed=3)
    [longest] = whole.longest_pair(stored, packing)
    assert len(longest.prompt) == 50


# Holding out by prompt


def _keys(count: int, prompts: int) -> list[str]:
    random.seed(0)
    return [f"{random.randrange(prompts) * 7919 % 10007:016x}" for _ in range(count)]


def test_the_prompts_with_the_lowest_hashes_are_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a count by hand: whole prompts by hash, one after the other, until enough pairs are out."""
    keys = _keys(300, 90)
    pairs = [_pair(1, 1, 1, key) for key in keys]
    stored = written(tmp_path / "pairs", pairs)
    monkeypatch.setattr(plans, "_BLOCK", 5)  # so that a few hundred keys are too many to hold
    monkeypatch.setattr(store_pairs, "_BLOCK", 7)
    for holdout in (0, 1, 60, 299, 300, 999, 0.0, 0.2, 0.999):
        wanted = round(holdout * 300) if isinstance(holdout, float) else holdout
        out: set[str] = set()
        for key in sorted(set(keys)):
            if sum(k in out for k in keys) < wanted:
                out.add(key)
        for of_any_kind in (pairs, stored):
            held_out = held_out_by_prompt(of_any_kind, holdout)
            assert [keys[i] for i in held_out] == [key for key in keys if key in out]
        assert [pair.prompt_key for pair in stored.without(held_out)] == [key for key in keys if key not in out]


def test_the_probe_is_fixed() -> None:
    pairs = [_pair(1, 1, 1, key) for key in _keys(200, 200)]
    chosen = probe(pairs)
    assert len(chosen) == 64
    assert chosen == sorted(chosen) == probe(pairs)
    assert max(pairs[i].prompt_key for i in chosen) <= sorted(p.prompt_key for p in pairs)[63]
