"""Which pairs are taken."""

import random
from pathlib import Path

import pytest

from tests.benchmarks.sample import TooFewError, by_hash, made_up_pair, steps_from
from tests.benchmarks.work import Work


def test_the_sample_depends_on_the_pairs_and_not_on_their_order() -> None:
    pairs = [made_up_pair(5 + i, 7, 400, seed=i) for i in range(40)]
    mixed = random.Random(3).sample(pairs, 40)
    assert by_hash(pairs, 1) == by_hash([*mixed, *mixed[:5]], 1)
    assert by_hash(pairs, 1) != by_hash(pairs, 2)


def test_the_warm_up_takes_short_pairs_that_are_not_measured() -> None:
    ordered = by_hash([made_up_pair(5 + i, 7, 400, seed=i) for i in range(40)], 1)
    taken = steps_from(ordered, 4, 5)
    assert taken[4:] == ordered[:20]
    assert all(pair in ordered[20:36] for pair in taken[:4])
    assert max(pair.num_tokens for pair in taken[:4]) <= min(
        pair.num_tokens for pair in ordered[20:36] if pair not in taken[:4]
    )
    with pytest.raises(TooFewError, match="40 pairs are too few"):
        steps_from(ordered, 8, 5)


def test_work_is_read_as_it_was_written(tmp_path: Path) -> None:
    pairs = [made_up_pair(5, 7, 400, seed=i) for i in range(6)]
    work = Work(model="folder", pairs=pairs, pairs_per_step=3, microbatch=1, precision="bf16")
    again = Work.load(work.save(tmp_path / "work.json"))
    assert again == work
    assert again.num_steps == 2
    assert again.step(1) == pairs[3:]
