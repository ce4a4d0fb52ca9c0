"""The fuzz target runs: on its seeds, on a few changed ones, and it notices what it is there for."""

import random

import pytest

from tests.fuzz import fuzz_records


def test_seeds_and_changed_seeds() -> None:
    found = fuzz_records.seeds()
    draw = random.Random(1)
    for data in (*found, *(fuzz_records.mutated(found, draw) for _ in range(1500))):
        fuzz_records.check(data)


def test_a_wrong_error_or_a_wrong_pair_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    good = next(seed for seed in fuzz_records.seeds() if b"It is blue." in seed)
    real = fuzz_records.to_pair

    def swallow(*_: object) -> None:
        raise KeyError("prompt")

    monkeypatch.setattr(fuzz_records, "to_pair", swallow)
    with pytest.raises(KeyError):
        fuzz_records.check(good)
    monkeypatch.setattr(fuzz_records, "to_pair", lambda *given: _without_answer(real(*given)))
    with pytest.raises(AssertionError):
        fuzz_records.check(good)


def _without_answer(pair: object) -> object:
    object.__setattr__(pair, "chosen", " ")
    return pair
