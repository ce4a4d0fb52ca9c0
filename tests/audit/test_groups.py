"""Pairs told apart by a field: bounded, and refused where the field is not what it seems."""

import pytest

from simpo_cli.audit.reading import MOST_GROUPS, NONE, OTHERS, Groups
from simpo_cli.data.raw import RawRecord
from simpo_cli.errors import UserError


def record(value: object) -> RawRecord:
    return RawRecord("f:1", {"made": {"by": value}, "Source": 1})


def test_values_are_numbered_as_they_turn_up() -> None:
    groups = Groups("made.by")
    numbers = [groups.number_of(record(value)) for value in ("a", 1, "a", None, True, "1")]
    assert numbers == [0, 1, 0, 2, 3, 1]
    assert groups.names == ["a", "1", NONE, "True"]


def test_many_values_take_no_more_memory_than_some() -> None:
    groups = Groups("made.by")
    numbers = [groups.number_of(record(f"{n} " * 1000)) for n in range(3 * MOST_GROUPS)]
    assert numbers[:MOST_GROUPS] == list(range(MOST_GROUPS))
    assert set(numbers[MOST_GROUPS:]) == {MOST_GROUPS}
    assert groups.names[MOST_GROUPS:] == [OTHERS]
    assert max(numbers) < 256  # one byte is kept of a pair
    assert max(map(len, groups.names)) <= 80


def test_a_field_that_no_record_has_is_refused_after_some() -> None:
    groups = Groups("source")
    for _ in range(99):
        groups.number_of(record("a"))
    with pytest.raises(UserError, match="no record has that field") as caught:
        groups.number_of(record("a"))
    assert "Source" in caught.value.fix
