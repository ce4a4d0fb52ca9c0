"""One record to one pair, by the layout of its file: which response is preferred, by a label, scores or names."""

import json
import math
import numbers
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from simpo_cli.data.formats.fields import (
    MISSING,
    SKIP,
    as_text,
    from_json,
    get,
    is_empty,
    required,
    shown_value,
    words_of,
)
from simpo_cli.data.formats.layout import Layout
from simpo_cli.data.formats.split import split_record
from simpo_cli.data.pair import PreferencePair
from simpo_cli.data.raw import RecordError, RecordNote, kind_of

_MEDIA = ("image", "video", "audio")
_LISTS_OF_MEDIA = tuple(f"{side}{name}s" for side in ("", "rejected_") for name in _MEDIA)
_TOOLS = "Tools are a list of JSON objects. " + SKIP

Record = Mapping[str, Any]
Notes = Counter[RecordNote]


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


def to_pair(record: Record, layout: Layout, where: str, notes: Notes) -> PreferencePair:
    """The pair that a record holds.

    Args:
        record: the record.
        layout: the file's layout.
        where: the record's place.
        notes: gets what is worth telling and stops nothing.

    Raises:
        RecordError: the record is malformed.
        NoSignalError: it is well-formed and cannot teach.
    """
    responses = responses_of(record, layout)
    best, worst = places_of(record, layout, len(responses), notes)
    prompt, chosen, rejected = split_record(record, layout, responses[best], responses[worst], notes)
    texts = [*([prompt] if isinstance(prompt, str) else [turn.content for turn in prompt])]
    _require_text_only(record, texts)
    if any("\0" in text for text in (*texts, chosen.content, rejected.content)):
        notes[RecordNote.NUL] += 1
    pair = PreferencePair(
        prompt if isinstance(prompt, str) else tuple(prompt),
        chosen.content,
        rejected.content,
        where,
        tools=_tools(record, layout),
        template_kwargs=_template_kwargs(record),
        chosen_fields=chosen.fields,
        rejected_fields=rejected.fields,
    )
    if any(not text or text.isspace() for text in (chosen.content, rejected.content)):
        raise NoSignalError("empty response", pair)
    if chosen == rejected:
        raise NoSignalError("identical responses", pair)
    return pair


def reason_of(record: Record, layout: Layout) -> str:
    """What decided the order of a record, such as `better_response_id = 1`; empty where the names of the fields do."""
    if layout.order == "label" and len(layout.label) > 1:
        return f"{_label_of(record, layout)} = 1"
    if layout.order == "label":
        return f"{layout.label[0]} = {shown_value(get(record, layout.label[0]))}"
    if layout.order == "scores":
        scores = _scores_of(record, layout, len(responses_of(record, layout)), Counter())
        shown = ", ".join(f"{score:g}" for score in scores if score is not None)
        return f"{' and '.join(layout.scores)} = {shown}, {'the lowest' if layout.lowest else 'the highest'} is better"
    return f"{layout.chosen} = {shown_value(get(record, layout.chosen))}" if layout.refers else ""


# The responses and their order


def responses_of(record: Record, layout: Layout) -> list[Any]:
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


def _referred(record: Record, layout: Layout, field: str) -> Any:
    """The response whose field the value of `chosen` or `rejected` names."""
    value = required(record, field)
    named = next((to for spelled, to in layout.refers if as_text(spelled) == as_text(value)), None)
    if named is None:
        raise UnknownLabelError([field], value)
    return required(record, named)


def places_of(record: Record, layout: Layout, count: int, notes: Notes) -> tuple[int, int]:
    """The places of the preferred and the other one among the responses of a record.

    Raises:
        RecordError: what says the order is missing or malformed.
        UnknownLabelError: the label has a value without a meaning.
        NoSignalError: the responses are tied.
    """
    scores = _scores_of(record, layout, count, notes)
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


def _by_label(record: Record, layout: Layout) -> tuple[int, int]:
    assert layout.labels is not None
    cell = get(record, layout.label[0])
    side = layout.labels.side(cell) if is_empty(cell) else None  # an empty cell may be said to be a tie
    if side is None:
        label = _label_of(record, layout)
        side = layout.labels.side(label)
        if side is None:
            raise UnknownLabelError(layout.label, label)
    if side == "tie":
        raise NoSignalError("tied label")
    return (0, 1) if side == "first" else (1, 0)


def _label_of(record: Record, layout: Layout) -> Any:
    """The value of the label; of several 0/1 fields, the name of the one that is set."""
    values = {field: _label_cell(record, field) for field in layout.label}
    if len(values) == 1:
        (value,) = values.values()
        holders = [name for name in layout.named_by if as_text(get(record, name)) == as_text(value)]
        return holders[0] if len(holders) == 1 else value
    chosen = [field for field, value in values.items() if as_text(value) in ("1", "true")]
    if len(chosen) != 1 or any(as_text(value) not in ("0", "1", "true", "false") for value in values.values()):
        shown = ", ".join(f"{field} = {shown_value(value)}" for field, value in values.items())
        raise UnknownLabelError(layout.label, shown)
    return chosen[0]


def _label_cell(record: Record, field: str) -> Any:
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


def _scores_of(record: Record, layout: Layout, count: int, notes: Notes) -> Sequence[float | None]:
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
        entries = get(record, field)
        if not isinstance(entries, list):
            if layout.order != "scores" and (entries is MISSING or is_empty(entries)):
                return []
            raise RecordError(f"{field}: expected a list of scores", SKIP)
    if len(entries) != count:
        raise RecordError(f"{field}: expected a list of {count} scores, got {len(entries)}", SKIP)
    return [_score(value, f"{field}[{place}]", notes) for place, value in enumerate(entries)]


def _score(value: Any, field: str, notes: Notes) -> float | None:
    if value is MISSING or is_empty(value) or (isinstance(value, str) and not value.strip()):
        return None
    number: Any = value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            raise RecordError(f"{field}: expected a number, got text {value[:40]!r}", SKIP) from None
        notes[RecordNote.SCORES_AS_TEXT] += 1
    elif isinstance(value, bool) or not isinstance(value, numbers.Number):
        raise RecordError(f"{field}: expected a number, got {kind_of(value)}", SKIP)
    if not isinstance(number, int) and math.isinf(number):
        raise RecordError(f"{field}: {number} is no score", SKIP)
    return None if not isinstance(number, int) and math.isnan(number) else number


# What stands beside the texts


def _tools(record: Record, layout: Layout) -> str | None:
    """JSON text of the tools that the conversation may call."""
    tools = get(record, layout.tools)
    if tools is MISSING or tools in (None, "", []):
        return None
    if not isinstance(tools, str | list | dict):
        raise RecordError(f"{layout.tools}: expected a list of tools, got {kind_of(tools)}", SKIP)
    value = from_json(tools, layout.tools) if isinstance(tools, str) else tools
    if not isinstance(value, list | dict):
        raise RecordError(f"{layout.tools}: the text is no list of tools", _TOOLS)
    if isinstance(tools, str) and (isinstance(value, dict) or all(isinstance(tool, dict) for tool in value)):
        return tools  # as it was written
    if isinstance(value, list):
        value = [_tool(tool, f"{layout.tools}[{i}]") for i, tool in enumerate(value)]
    return json.dumps(value, ensure_ascii=False, default=str)  # a table may hold dates


def _tool(tool: Any, path: str) -> dict[str, Any]:
    """One tool of a list: an object, or an object as JSON text."""
    value = from_json(tool, path) if isinstance(tool, str) else tool
    if not isinstance(value, dict):
        raise RecordError(f"{path}: expected the definition of a tool, got {kind_of(value)}", _TOOLS)
    return value


def _template_kwargs(record: Record) -> str | None:
    """JSON text of the record's own variables for the chat template, which TRL and smoltalk2 keep in a column."""
    field = "chat_template_kwargs"
    value = record.get(field)
    if isinstance(value, str) and value.strip():
        value = from_json(value, field)
    if value in (None, "", {}):
        return None
    if not isinstance(value, dict):
        raise RecordError(f"{field}: expected an object, got {kind_of(value)}", SKIP)
    given = {name: one for name, one in value.items() if one is not None}  # a column writes null for what is not there
    return json.dumps(given, ensure_ascii=False, default=str) if given else None


def _require_text_only(record: Record, texts: Sequence[str]) -> None:
    """Refuse a record with pictures, films or sound, which would be dropped from what is asked."""
    if not any(map(_speaks_of_media, record)):
        return  # as in nearly every file; the texts are not searched then
    found = [name for name in _LISTS_OF_MEDIA if record.get(name)]
    for name in _MEDIA:
        found += [name] if isinstance(record.get(name), dict | list | bytes) else []
        if any(f"<{name}>" in text for text in texts):
            found += [field for field, value in record.items() if value and name in words_of(field)]
    if found:
        raise RecordError(
            f"{found[0]}: the record is about more than its texts, and only text can be trained on",
            "Leave such records out with data.on_bad_record: skip, or take the field out of those that make sense "
            "without it.",
        )


@lru_cache(maxsize=4096)
def _speaks_of_media(field: str) -> bool:
    return any(name in field.lower() for name in _MEDIA)
