"""What the values of a label mean: which response each prefers, as the person, a known layout or the names say."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from simpo_cli.data.formats.fields import as_number, as_text, shown_value, word_set, words_of
from simpo_cli.data.formats.names import SPEAKERS, TIES, are_in_order, end_named

Side = Literal["first", "second", "tie"]
SIDES: tuple[Side, ...] = ("first", "second", "tie")

_FIRST_AND_SECOND = (("left", "right"), ("first", "second"))
_INDEX = word_set("id idx index choice")


@dataclass(frozen=True)
class Labels:
    """The meaning of each value: the first response is better, the second is, or neither.

    Attributes:
        values: (value, side) of every value that is listed.
        bounds: (side, word, number) where a side is all numbers `below` or `above` one, as of a signed strength.
    """

    values: tuple[tuple[Any, Side], ...] = ()
    bounds: tuple[tuple[Side, str, float], ...] = ()

    @classmethod
    def of(cls, meanings: Mapping[str, Any]) -> "Labels":
        """The meanings as a recipe writes them: `{first: [0, a], second: [1, b]}`, `{first: {below: 0}}`."""
        values: list[tuple[Any, Side]] = []
        bounds: list[tuple[Side, str, float]] = []
        for side in SIDES:
            meant = meanings.get(side) or []
            if isinstance(meant, Mapping):
                bounds += [(side, word, float(number)) for word, number in meant.items()]
            else:
                values += [(value, side) for value in meant]
        return cls(tuple(values), tuple(bounds))

    @classmethod
    def of_flags(cls, fields: Sequence[str]) -> "Labels":
        """Of 0/1 fields of which one is set: the first wins, the second wins, or, by any further one, neither."""
        return cls(tuple((field, SIDES[min(place, 2)]) for place, field in enumerate(fields)))

    def side(self, value: Any) -> Side | None:
        """The side that a value prefers, matched by its JSON type, else by its text; None if it is given no meaning."""
        exact = {side for listed, side in self.values if _same_json(listed, value)}
        if not exact:
            exact = {side for listed, side in self.values if value is not None and as_text(listed) == as_text(value)}
        if not exact and self.bounds and (number := as_number(value)) is not None:
            exact = {s for s, word, bound in self.bounds if (number < bound if word == "below" else number > bound)}
        return exact.pop() if len(exact) == 1 else None

    def as_meanings(self, values: Iterable[Any]) -> dict[str, Any]:
        """The meanings as a recipe writes them, of these values only."""
        found = {side: [value for value in values if self.side(value) == side] for side in SIDES}
        return {side: meant for side, meant in found.items() if meant}

    def shown(self, first: str, second: str) -> str:
        """The meanings in words: `0 means response_0, 1 means response_1`."""
        names = {"first": first, "second": second, "tie": "a tie"}
        meanings = [f"{shown_value(value)} means {names[side]}" for value, side in self.values]
        meanings += [f"{word} {number:g} means {names[side]}" for side, word, number in self.bounds]
        return ", ".join(meanings)


def _same_json(one: Any, other: Any) -> bool:
    """Whether two values are equal and of one JSON type: 1 and 1.0 are, 1 and true are not."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def label_words(value: Any) -> Side | None:
    """What a word says whatever the responses are called: left, second, tie, both_bad."""
    if not isinstance(value, str):
        return None
    words = words_of(value)
    if "".join(words) in TIES:
        return "tie"
    bare = [word for word in words if word not in SPEAKERS]
    for pair in _FIRST_AND_SECOND:
        if len(bare) == 1 and bare[0] in pair:
            return SIDES[pair.index(bare[0])]
    return {("model", "a"): SIDES[0], ("model", "b"): SIDES[1]}.get(words)  # type: ignore[arg-type]


def derived(
    label: str, values: Iterable[Any], fields: Sequence[str], ends: tuple[str, str] | None, *, stated: bool
) -> tuple[Labels, list[Any]]:
    """What the values of a label mean by the names of the label and of the two responses.

    Args:
        label: the label's field.
        values: all values that it has in the sample, null left out.
        fields: the fields of the two responses; empty where they are entries of a list.
        ends: what tells the names of the two apart, such as ("a", "b") or ("1", "2").
        stated: the person has named the label: then one value is enough, and 1 and 2 follow the order of the fields.

    Returns:
        The meanings that are certain, and the values whose meaning is not. If the first has none that orders a pair,
        all values are of the second kind.
    """
    distinct = [value for _, value in dict.fromkeys((type(value), value) for value in values)]
    counted = are_in_order(ends or ())  # else it is not certain what left, first and 0 mean
    numbered = _by_number(label, distinct, ends, stated) if counted else {}
    meanings: list[tuple[Any, Side]] = []
    unclear: list[Any] = []
    for value in distinct:
        spoken = label_words(value)
        spoken = spoken if counted or spoken == "tie" else None
        side = _by_name(value, fields, ends) or spoken or numbered.get(as_text(value))
        if side is None or isinstance(value, bool):
            unclear.append(value)
        else:
            meanings.append((value, side))
    if all(side == "tie" for _, side in meanings):
        return Labels(), distinct
    seen = {as_text(value) for value in distinct}
    usual: list[tuple[Any, Side]] = [(int(text), side) for text, side in numbered.items()]
    if not numbered:  # values that mean the same in a file whose sample lacks them
        words = [fields, [end for end in ends or () if not end.isdigit()]]
        words += [*_FIRST_AND_SECOND, ("model_a", "model_b")] if counted else []
        usual = [(word, side) for pair in words for word, side in zip(pair, SIDES, strict=False)]
    usual += [(word, "tie") for word in ("tie", "draw", "equal", "both", "neither")]
    return Labels((*meanings, *((value, side) for value, side in usual if as_text(value) not in seen))), unclear


def _by_name(value: Any, fields: Sequence[str], ends: tuple[str, str] | None) -> Side | None:
    """The response that a text names: by its field, its letter, or its letter or number behind a word for responses."""
    if not isinstance(value, str):
        return None
    named = [side for field, side in zip(fields, SIDES, strict=False) if as_text(value) == as_text(field)]
    end = end_named(value, ends or ())
    if named or end is None or (end.isdigit() and words_of(value) == (end,)):
        return next(iter(named), None)
    assert ends is not None
    return SIDES[ends.index(end)]


def _by_number(label: str, values: Sequence[Any], ends: tuple[str, str] | None, stated: bool) -> dict[str, Side]:
    """What the numbers among the values mean, as text; empty where that is unclear or there are none."""
    found = {as_text(value) for value in values if as_number(value) is not None}
    if not found or not all(isinstance(value, str | int | float) for value in values):
        return {}
    enough = stated or len(found) == 2
    if ends == ("1", "2") and found <= {"1", "2"} and enough:
        return {"1": "first", "2": "second"}
    if ends == ("0", "1") and found <= {"0", "1"} and enough:
        return {"0": "first", "1": "second"}
    if stated and not (ends and ends[0].isdigit()) and found <= {"1", "2"} and "2" in found:
        return {"1": "first", "2": "second"}  # the order in which the person gives the fields
    if found == {"0", "1"} and not _INDEX.isdisjoint(words_of(label)):
        return {"0": "first", "1": "second"}
    return {}
