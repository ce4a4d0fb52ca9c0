"""Some of the pairs: a sample that no order changes, the pairs that a person names, and those held out by prompt."""

import random
from collections.abc import Iterator

import numpy as np
import pytest

from simpo_cli.data.load import PromptSample, named_pairs
from simpo_cli.data.pair import EncodedPair, PreferencePair, prompt_key
from simpo_cli.data.plan import probe, split_by_prompt
from simpo_cli.errors import UserError

PAIRS = [PreferencePair(f"question {n % 30}", f"a{n}", f"b{n}", f"data/prefs.jsonl:{n + 1}") for n in range(80)]


def sample_of(pairs: list[PreferencePair], most: int) -> list[PreferencePair]:
    sample = PromptSample(most)
    for pair in pairs:
        sample.add(pair)
    return sample.pairs


@pytest.mark.parametrize("most", [1, 7, 80, 200])
def test_the_sample_goes_by_the_prompt_and_not_by_the_order(most: int) -> None:
    sample = sample_of(PAIRS, most)
    first = sorted(range(80), key=lambda i: (prompt_key(PAIRS[i]), i))[:most]
    assert sample == [PAIRS[i] for i in sorted(first)]
    of_shuffled = sample_of(random.Random(0).sample(PAIRS, 80), most)
    assert {pair.prompt for pair in of_shuffled} == {pair.prompt for pair in sample}


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("1", 1),
        ("17", 17),
        ("0017", 17),
        ("data/prefs.jsonl:17", 17),
        ("prefs.jsonl:17", 17),
        ("line 7", 7),
        ("80", 80),
    ],
)
def test_a_pair_is_found_by_its_number_and_by_its_place(name: str, number: int) -> None:
    assert list(named_pairs(PAIRS, [name])) == [(number, PAIRS[number - 1])]


def test_a_record_of_an_array_is_found_by_its_place() -> None:
    pairs = [PreferencePair("p", "a", "b", f"prefs.json, record {n}") for n in range(1, 2000)]
    for name in ("record 17", "prefs.json, record 17", "17"):
        assert [number for number, _ in named_pairs(pairs, [name])] == [17]
    assert [number for number, _ in named_pairs(pairs, ["1,700"])] == [1700]


def test_nothing_is_read_behind_the_last_one() -> None:
    seen = []

    def reader() -> Iterator[PreferencePair]:
        for pair in PAIRS:
            seen.append(pair)
            yield pair

    assert [number for number, _ in named_pairs(reader(), ["9", "prefs.jsonl:3", "9"])] == [3, 9]
    assert len(seen) == 9


@pytest.mark.parametrize("name", ["81", "0", "other.jsonl:3", "line 81", "record 3", ":3", "fs.jsonl:3"])
def test_what_is_not_there_is_said(name: str) -> None:
    with pytest.raises(UserError, match="there is no pair .* among the 80"):
        list(named_pairs(PAIRS, [name]))


# Holding out by prompt


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
