"""What the values of a label mean: which response each prefers, as the person, a known layout or the names say."""

import math
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from simpo_cli.data.formats.fields import word_set, words_of
from simpo_cli.data.formats.names import are_in_order

Side = Literal["first", "second", "tie"]
SIDES: tuple[Side, ...] = ("first", "second", "tie")

_TIES = word_set(
    "tie tied draw equal equally same both neither none bothbad bothgood allbad similar nopreference nodifference "
    "equallygood equallybad tiebothbad tiebothgood bothequal"
)
_FIRST_AND_SECOND = (("left", "right"), ("first", "second"))
_SPEAKERS = word_set("model assistant system response output completion answer option candidate")
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

    def side(self, value: Any) -> Side | None:
        """The side that a value prefers, matched by its JSON type, else by its text; None if it is given no meaning."""
        exact = {side for listed, side in self.values if same_json(listed, value)}
        if not exact:
            exact = {side for listed, side in self.values if value is not None and as_text(listed) == as_text(value)}
        if not exact and self.bounds and (number := as_number(value)) is not None:
            exact = {s for s, word, bound in self.bounds if (number < bound if word == "below" else number > bound)}
        return exact.pop() if len(exact) == 1 else None

    def as_meanings(self, values: Iterable[Any]) -> dict[str, Any]:
        """The meanings as a recipe writes them, of these values only."""
        found: dict[str, Any] = {}
        for value in values:
            if (side := self.side(value)) is not None:
                found.setdefault(side, []).append(value)
        return {side: found[side] for side in SIDES if side in found}

    def shown(self, first: str, second: str) -> str:
        """The meanings in words: `0 means response_0, 1 means response_1`."""
        names = {"first": first, "second": second, "tie": "a tie"}
        said = [f"{shown_value(value)} means {names[side]}" for value, side in self.values]
        said += [f"{word} {number:g} means {names[side]}" for side, word, number in self.bounds]
        return ", ".join(said)


def same_json(one: Any, other: Any) -> bool:
    """Whether two values are equal and of one JSON type: 1 and 1.0 are, 1 and true are not."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def as_text(value: Any) -> str:
    """A value as text to compare: 1, 1.0, "1" and "1.0" are one, as are true and "True", A and a."""
    return re.sub(r"(?<=^\d)\.0+$", "", str(value).strip().casefold())


def as_number(value: Any) -> float | None:
    """A finite number, also one that is written as text; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value) if isinstance(value, str | numbers.Number) else math.nan  # type: ignore[arg-type]
    except (ValueError, OverflowError, TypeError):
        return None
    return number if math.isfinite(number) else None


def shown_value(value: Any) -> str:
    """A value as messages show it."""
    if isinstance(value, bool):
        return str(value).lower()
    text = "null" if value is None else str(value)
    return text if len(text) <= 30 else text[:30] + "..."


def label_words(value: Any) -> Side | None:
    """What a word says whatever the responses are called: left, second, tie, both_bad."""
    if not isinstance(value, str):
        return None
    words = words_of(value)
    if "".join(words) in _TIES:
        return "tie"
    bare = [word for word in words if word not in _SPEAKERS]
    for first, second in _FIRST_AND_SECOND:
        if bare in ([first], [second]):
            return "first" if bare == [first] else "second"
    if len(words) == 2 and words[0] == "model" and words[1] in ("a", "b"):
        return "first" if words[1] == "a" else "second"
    return None


def derived(
    label: str, values: Iterable[Any], fields: Sequence[str], ends: tuple[str, str] | None, *, stated: bool
) -> tuple[Labels, list[Any]]:
    """What the values of a label mean by the names of the label and of the two responses.

    Returns:
        The meanings that are certain, and the values whose meaning is not. If the first has none that orders a pair,
        all values are of the second kind.

    Args:
        label: the label's field.
        values: all values that it has in the sample, null left out.
        fields: the fields of the two responses; empty where they are entries of a list.
        ends: what tells the names of the two apart, such as ("a", "b") or ("1", "2").
        stated: the person has named the label: then one value is enough, and 1 and 2 follow the order of the fields.
    """
    distinct = [value for _, value in dict.fromkeys((type(value), value) for value in values)]
    counted = are_in_order(ends or ())  # else it is not certain what left, first and 0 mean
    sides = _by_number(label, distinct, ends, stated) if counted else {}
    meanings: list[tuple[Any, Side]] = []
    unclear: list[Any] = []
    for value in distinct:
        spoken = label_words(value)
        spoken = spoken if counted or spoken == "tie" else None
        side = _by_name(value, fields, ends) or spoken or sides.get(as_text(value))
        if side is None or isinstance(value, bool):
            unclear.append(value)
        else:
            meanings.append((value, side))
    if all(side == "tie" for _, side in meanings):
        return Labels(), distinct
    seen = {as_text(value) for value in distinct}
    others = [(value, side) for value, side in _usual(fields, ends, sides) if as_text(value) not in seen]
    return Labels(tuple(meanings + others)), unclear


def _usual(fields: Sequence[str], ends: tuple[str, str] | None, sides: Mapping[str, Side]) -> list[tuple[Any, Side]]:
    """Values that mean the same in a file whose sample lacks them."""
    usual: list[tuple[Any, Side]] = [(int(text), side) for text, side in sides.items()]
    if not sides:
        usual += [(name, side) for name, side in zip(fields, SIDES, strict=False)]
        usual += [(end, side) for end, side in zip(ends or (), SIDES, strict=False) if not end.isdigit()]
    if not sides and are_in_order(ends or ()):
        usual += [(word, side) for pair in _FIRST_AND_SECOND for word, side in zip(pair, SIDES, strict=False)]
        usual += [("model_a", "first"), ("model_b", "second")]
    return usual + [(word, "tie") for word in ("tie", "draw", "equal", "both", "neither")]


def _by_name(value: Any, fields: Sequence[str], ends: tuple[str, str] | None) -> Side | None:
    """The response that a text names: by its field, its letter, or its letter or number behind a word for responses."""
    if not isinstance(value, str):
        return None
    for field, side in zip(fields, SIDES, strict=False):
        if as_text(value) == as_text(field):
            return side
    words = words_of(value)
    if ends is None or not words or words[-1] not in ends:
        return None
    spoken = words[:-1]
    if (len(spoken) == 1 and spoken[0] in _SPEAKERS) or (not spoken and not words[-1].isdigit()):
        return "first" if words[-1] == ends[0] else "second"
    return None


def _by_number(label: str, values: Sequence[Any], ends: tuple[str, str] | None, stated: bool) -> dict[str, Side]:
    """What the numbers among the values mean, as text; empty where that is unclear or there are none."""
    found = {as_text(value) for value in values if not isinstance(value, bool) and as_number(value) is not None}
    is_index = not _INDEX.isdisjoint(words_of(label))
    one_two: dict[str, Side] = {"1": "first", "2": "second"}
    zero_one: dict[str, Side] = {"0": "first", "1": "second"}
    if not found or not all(isinstance(v, str | int | float) for v in values):
        return {}
    if ends == ("1", "2") and found <= {"1", "2"} and (stated or len(found) == 2):
        return one_two
    if ends == ("0", "1") and found <= {"0", "1"} and (stated or len(found) == 2):
        return zero_one
    if stated and not (ends and ends[0].isdigit()) and found <= {"1", "2"} and "2" in found:
        return one_two  # the order in which the person gives the fields
    if is_index and found == {"0", "1"}:
        return zero_one
    return {}
