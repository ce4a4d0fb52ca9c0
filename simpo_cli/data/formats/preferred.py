"""Which of the responses of a record is preferred: by their names, by a label or by their scores."""

import math
import numbers
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from simpo_cli.data.formats.fields import MISSING, SKIP, get, required
from simpo_cli.data.formats.labels import as_number, as_text, shown_value
from simpo_cli.data.formats.layout import Layout
from simpo_cli.data.pair import PreferencePair
from simpo_cli.data.raw import RecordError, RecordNote, kind_of


class NoSignalError(Exception):
    """A well-formed record that cannot teach: `reason` is counted; `pair` is its pair, if it has an order at all."""

    def __init__(self, reason: str, pair: PreferencePair | None = None) -> None:
        self.reason, self.pair = reason, pair
        super().__init__(reason)


class UnknownLabelError(RecordError):
    """A label whose value is given no meaning: the whole file may be meant otherwise, so it is never just left out."""

    def __init__(self, fields: Sequence[str], value: Any) -> None:
        self.fields = tuple(fields)
        super().__init__(
            f"{' / '.join(fields)} is {shown_value(value)}, which is given no meaning",
            "Say in labels what each value means: {first: [..], second: [..], tie: [..]}.",
        )


def sides_of(record: Mapping[str, Any], layout: Layout, notes: Counter[RecordNote]) -> tuple[Any, Any]:
    """What the record holds as the preferred and the other response."""
    responses = responses_of(record, layout)
    better, worse = places_of(record, layout, len(responses), notes)
    return responses[better], responses[worse]


def places_of(record: Mapping[str, Any], layout: Layout, count: int, notes: Counter[RecordNote]) -> tuple[int, int]:
    """The places of the preferred and the other one among the responses of a record.

    Raises:
        RecordError: what says the order is missing or malformed.
        UnknownLabelError: the label has a value without a meaning.
        NoSignalError: the responses are tied.
    """
    scores = scores_of(record, layout, count, notes)
    if layout.order == "scores":
        known = [score for score in scores if score is not None]
        if len(known) < count:
            missing = layout.scores[scores.index(None)] if len(layout.scores) == count else layout.scores[0]
            raise RecordError(f"{missing} is missing", "The scores say which response is preferred. " + SKIP)
        low, high = known.index(min(known)), known.index(max(known))
        if known[low] == known[high]:
            raise NoSignalError("tied scores")
        return (low, high) if layout.lowest else (high, low)
    places = (0, count - 1) if layout.order == "names" else _by_label(record, layout)
    if len(scores) == count and (better := scores[places[0]]) is not None and (worse := scores[places[1]]) is not None:
        if better == worse:
            notes[RecordNote.TIED_SCORES] += 1
        elif (better > worse) == layout.lowest:
            notes[RecordNote.AGAINST_LABEL] += 1
    return places


def reason_of(record: Mapping[str, Any], layout: Layout) -> str:
    """What decided the order of a record, such as `better_response_id = 1`; empty where the names of the fields do."""
    if layout.order == "label":
        return (
            f"{layout.label[0]} = {shown_value(get(record, layout.label[0]))}"
            if len(layout.label) == 1
            else (f"{label_of(record, layout)} = 1")
        )
    if layout.order == "scores":
        count = len(responses_of(record, layout))
        shown = " and ".join(layout.scores)
        scores = [f"{score:g}" for score in scores_of(record, layout, count, Counter()) if score is not None]
        return f"{shown} = {', '.join(scores)}, {'the lowest' if layout.lowest else 'the highest'} is better"
    if layout.refers:
        return f"{layout.chosen} = {shown_value(get(record, layout.chosen))}"
    return ""


# The responses


def responses_of(record: Mapping[str, Any], layout: Layout) -> list[Any]:
    """All responses of a record, in the order of their fields or of their list."""
    if layout.refers:
        return [_referred(record, layout, field) for field in (layout.chosen, layout.rejected)]
    if not layout.is_list:
        return [required(record, field) for field in layout.responses]
    field = layout.chosen
    responses = required(record, field)
    only_two = layout.order == "label"
    if not isinstance(responses, list) or len(responses) < 2 or (only_two and len(responses) > 2):
        count = f"a list of {len(responses)}" if isinstance(responses, list) else kind_of(responses)
        more = "" if only_two else " or more"
        raise RecordError(f"{field}: expected a list of two responses{more}, got {count}", SKIP)
    if not layout.text:
        return responses
    texts = [get(one, layout.text) if isinstance(one, dict) else MISSING for one in responses]
    for place, text in enumerate(texts):
        if text is MISSING or text is None:
            raise RecordError(f"{field}[{place}]: no response text ({layout.text})", SKIP)
    return texts


def _referred(record: Mapping[str, Any], layout: Layout, field: str) -> Any:
    """The response whose field the value of `chosen` or `rejected` names."""
    value = required(record, field)
    named = next((to for said, to in layout.refers if as_text(said) == as_text(value)), None)
    if named is None:
        raise UnknownLabelError([field], value)
    return required(record, named)


# The label


def label_of(record: Mapping[str, Any], layout: Layout) -> Any:
    """The value of the label; of several 0/1 fields, the name of the one that is set."""
    if len(layout.label) == 1:
        value = required_label(record, layout.label[0])
        holders = [name for name in layout.named_by if as_text(get(record, name)) == as_text(value)]
        return holders[0] if len(holders) == 1 else value
    values = {field: required_label(record, field) for field in layout.label}
    chosen = [field for field, value in values.items() if as_text(value) in ("1", "true")]
    if len(chosen) != 1 or any(as_text(value) not in ("0", "1", "true", "false") for value in values.values()):
        shown = ", ".join(f"{field} = {shown_value(value)}" for field, value in values.items())
        raise UnknownLabelError(layout.label, shown)
    return chosen[0]


def required_label(record: Mapping[str, Any], field: str) -> Any:
    """The value of a label's field.

    Raises:
        RecordError: the record lacks the field, or it holds more than a single value.
        NoSignalError: the cell is empty: nobody said which response is preferred.
    """
    value = get(record, field)
    if value is MISSING or isinstance(value, list | dict):
        raise RecordError(f"{field}: expected a label, got {'nothing' if value is MISSING else kind_of(value)}", SKIP)
    if is_empty(value):
        raise NoSignalError("no label")
    return value


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, an empty text or a NaN."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _by_label(record: Mapping[str, Any], layout: Layout) -> tuple[int, int]:
    assert layout.labels is not None
    cell = get(record, layout.label[0])
    side = layout.labels.side(cell) if is_empty(cell) else None  # an empty cell may be said to be a tie
    if side is None:
        label = label_of(record, layout)
        side = layout.labels.side(label)
        if side is None:
            raise UnknownLabelError(layout.label, label)
    if side == "tie":
        raise NoSignalError("tied label")
    return (0, 1) if side == "first" else (1, 0)


# Scores


def scores_of(
    record: Mapping[str, Any], layout: Layout, count: int, notes: Counter[RecordNote]
) -> Sequence[float | None]:
    """The scores of the responses, None where one has none; empty where no scores are known."""
    if not layout.scores:
        return []
    if len(layout.scores) > 1:
        return [_score(get(record, field), field, notes) for field in layout.scores]
    field = layout.scores[0]
    inside = field.removeprefix(f"{layout.chosen}.") if layout.is_list else field
    if inside != field:
        entries = [get(one, inside) if isinstance(one, dict) else MISSING for one in get(record, layout.chosen)]
    else:
        raw = get(record, field)
        if not isinstance(raw, list):
            if layout.order != "scores" and (raw is MISSING or is_empty(raw)):
                return []
            raise RecordError(f"{field}: expected a list of scores", SKIP)
        entries = raw
    if len(entries) != count:
        raise RecordError(f"{field}: expected a list of {count} scores, got {len(entries)}", SKIP)
    return [_score(value, f"{field}[{place}]", notes) for place, value in enumerate(entries)]


def _score(value: Any, field: str, notes: Counter[RecordNote]) -> float | None:
    if value is MISSING or is_empty(value) or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            raise RecordError(f"{field}: expected a number, got text {value[:40]!r}", SKIP) from None
        notes[RecordNote.SCORES_AS_TEXT] += 1
    elif isinstance(value, bool) or not isinstance(value, numbers.Number):
        raise RecordError(f"{field}: expected a number, got {kind_of(value)}", SKIP)
    else:
        number = value  # type: ignore[assignment]
    if not isinstance(number, int) and math.isnan(number):
        return None
    if not isinstance(number, int) and math.isinf(number):
        raise RecordError(f"{field}: {number} is no score", SKIP)
    return number


def numbers_in(values: Sequence[Any]) -> bool:
    """Whether some of the values are numbers, and all of them numbers or nothing."""
    held = [value for value in values if value is not MISSING and not is_empty(value)]
    return bool(held) and all(as_number(value) is not None for value in held)
