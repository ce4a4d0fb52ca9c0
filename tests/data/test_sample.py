"""Some pairs instead of all: a sample that no order changes, and the pairs that a person names."""

import random
from collections.abc import Iterator

import pytest

from simpo_cli.data.encode import prompt_key
from simpo_cli.data.pair import PreferencePair
from simpo_cli.data.selection import PromptSample, named_pairs
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
