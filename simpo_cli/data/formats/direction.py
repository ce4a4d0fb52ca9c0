"""What says which response of a file is preferred: exactly one thing, or the file is refused.

Fields that are named as chosen and rejected say it by their names. Others never do by their place: a label, winner
columns, scores or ranks must say it, and the meaning of their values must be certain, by their names or because the
person or a known layout gives it.
"""

import math
import numbers
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

from simpo_cli.data.formats import names, refusals
from simpo_cli.data.formats.layout import Labels, Layout, derived
from simpo_cli.data.formats.names import MISSING, SKIP, Record, as_text, get, is_empty, required, shown_value, words_of
from simpo_cli.data.formats.orders import (
    Answers,
    Order,
    Sample,
    checking_scores,
    fields_beside,
    find_orders,
    keyed,
    naming_fields,
    scalars_of,
    values_of,
)
from simpo_cli.data.pair import PreferencePair, RecordError, RecordNote, kind_of
from simpo_cli.errors import UserError


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


_TEXTS = (str, list, dict)

Notes = Counter[RecordNote]

Parts = dict[str, Any]
"""Attributes of a layout."""


def direction_of(sample: Sample) -> Parts:
    """The part of the layout that says which response is preferred.

    Raises:
        UserError: nothing says it, it is not certain what does, or two things say different orders.
    """
    answers, stated = sample.answers, sample.stated
    checks = tuple(stated.field(part) or part for part in ("score_chosen", "score_rejected"))
    checks = checks if {"score_chosen", "score_rejected"} & stated.columns.keys() else ()
    part: Literal["rank", "scores"] = "rank" if "rank" in stated.columns else "scores"
    if stated.direction is not None:
        return _by_place(sample) | {"scores": checks}
    if "label" in stated.columns or stated.labels:
        measured = _by_scores(sample, part) if part in stated.columns else {"scores": checks}
        return measured | _by_label(sample)  # scores beside a label are compared with it
    if part in stated.columns:
        return _by_scores(sample, part)
    if "best" in stated.columns:
        problem = "columns says which score is best, and names neither scores nor rank."
        raise UserError(problem, "Add scores: [FIELD, FIELD], or leave best out.", where=sample.name)
    is_said = "chosen" in stated.columns or "rejected" in stated.columns
    if not (is_said or answers.named):
        return _found(sample)
    if refers := _refers(sample, only_names=is_said):
        return {"refers": refers}
    named = answers.named or all(map(names.says_a_side, answers.fields))
    if not named and (stated.is_own("chosen") or stated.is_own("rejected")):
        if orders := find_orders(sample):
            raise refusals.unmapped(sample, orders[0])
        return {"scores": checks, "remarks": (f"{answers.fields[0]} is taken as chosen because columns says so",)}
    return {"scores": checks or checking_scores(sample)}  # the names or a known layout say it


def _by_place(sample: Sample) -> Parts:
    """The first response is the better one, in words of the person or by a known layout."""
    answers, stated = sample.answers, sample.stated
    others = [part for part in ("label", "scores", "rank") if part in stated.columns]
    if others:
        problem = f"direction says that the first response is the better one, and columns names {others[0]}."
        fix = f"Leave out direction where {others[0]} says which is better, or take {others[0]} out."
        raise UserError(problem, fix, where=sample.name)
    if answers.named or not stated.is_own("direction"):
        return {}  # the names of the fields or a known layout say it
    first = f"the first of {answers.fields[0]}" if answers.is_list else answers.fields[0]
    return {"remarks": (f"{first} is taken as chosen because direction says so",)}


def _by_label(sample: Sample) -> Parts:
    """The label that `columns` names, or that `labels` is about, with a certain meaning of its values."""
    answers, stated = sample.answers, sample.stated
    orders = [] if len(stated.fields("label")) > 1 else find_orders(sample)
    fields = stated.fields("label") or _label_of_meanings(orders, sample.name)
    _require_same_order(fields[:2], sample)
    if len(answers.fields) > 2:
        problem = f"{fields[0]} is a label, which is for two responses, and there are {len(answers.fields)}."
        raise UserError(problem, "Name two of them: answers: [FIELD, FIELD].", where=sample.name)
    counts = values_of(sample.records, fields[0])
    if stated.labels:
        labels = Labels.of(stated.labels)
    elif len(fields) > 1:
        labels = Labels.of_flags(fields)
    else:
        named = [order for order in orders if order.fields == fields]
        if named and named[0].named_by:
            return _label_parts(named[0], answers)
        two = () if answers.is_list else answers.fields
        labels, unclear = derived(fields[0], scalars_of(counts), two, answers.ends, stated=True)
        if named and named[0].kind == "text":
            raise refusals.no_direction(sample, named)
        if names.is_about_loser(fields[0]):  # what it names may be the worse one
            labels, unclear = Labels(), scalars_of(counts)
        if unclear:
            order = Order("label", fields, labels if labels.values else None, certain=False, values=counts)
            raise refusals.no_direction(sample, [order])
    return _label_parts(Order("label", fields, labels, values=counts), answers)


def _require_same_order(fields: Sequence[str], sample: Sample) -> None:
    """Refuse fields of scores or winners whose names say the reverse of the order of the responses."""
    responses = sample.answers.fields
    reverse = tuple(fields[::-1])
    if len(fields) == len(responses) == 2 and reverse in [found for found, _ in fields_beside(fields, responses)]:
        problem = f"columns gives {' and '.join(fields)} for the responses {' and '.join(responses)}, in another order."
        raise UserError(problem, f"Give both in one order: [{', '.join(reverse)}].", where=sample.name)


def _label_parts(order: Order, answers: Answers) -> Parts:
    assert order.labels is not None
    parts: Parts = {"order": "label", "label": order.fields, "labels": order.labels, "named_by": order.named_by}
    if order.named_by:
        return parts | {"remarks": (f"{order.shown} repeats {' or '.join(order.named_by)}",)}
    first, second = ("the first", "the second") if answers.is_list else answers.fields[:2]
    listed = tuple(pair for pair in order.labels.values if len(order.fields) > 1 or keyed(pair[0]) in order.values)
    meaning = Labels(listed, order.labels.bounds).shown(first, second)
    return parts | {"remarks": (f"{' / '.join(order.fields)}: {meaning}",) if meaning else ()}


def _label_of_meanings(orders: Sequence[Order], name: str) -> tuple[str, ...]:
    """The field that `labels` is about where `columns` does not name it."""
    found = [order for order in orders if order.kind == "label"]
    if len(found) == 1:
        return found[0].fields
    shown = " or ".join(order.shown for order in found)
    problem = "labels says what the values of a label mean, and columns does not name the label."
    fix = f"Add label: FIELD to columns; it may be {shown}." if found else "Add label: FIELD to columns."
    raise UserError(problem, fix, where=name)


def _by_scores(sample: Sample, part: Literal["rank", "scores"]) -> Parts:
    answers, fields = sample.answers, sample.stated.fields(part)
    if not answers.is_list and len(fields) != len(answers.fields):
        problem = f"columns gives {len(fields)} fields of {part} and {len(answers.fields)} responses."
        fix = f"Give one for each response, in their order: {part}: [{', '.join(['FIELD'] * len(answers.fields))}]."
        raise UserError(problem, fix, where=sample.name)
    _require_same_order(fields, sample)
    best = sample.stated.field("best")
    kinds = {names.kind_of_score(words_of(field)) for field in fields}
    if best is None and (part == "rank" or kinds & {"unclear", "rank"}):
        raise refusals.no_direction(sample, [Order(part, fields, certain=False)])
    return {"order": "scores", "scores": fields, "lowest": best == "lowest"}


def _found(sample: Sample) -> Parts:
    """The one thing in the records that orders responses without an order by name."""
    answers, orders = sample.answers, find_orders(sample)
    certain = [order for order in orders if order.certain]
    if not certain:
        raise refusals.no_direction(sample, orders)
    rivals = [(one, other) for one, other in pairwise(certain) if _differ(sample, one, other)]
    rivals += [
        (certain[0], order) for order in orders if not order.certain and _could_differ(sample, certain[0], order)
    ]
    if rivals:
        raise refusals.contradiction(sample, *rivals[0])
    parts = _parts_of(certain[0], answers)
    if parts["order"] == "label":
        parts["scores"] = next((order.fields for order in certain if order.kind == "scores"), ())
    return parts


def _parts_of(order: Order, answers: Answers) -> Parts:
    if order.kind == "label":
        return _label_parts(order, answers)
    return {"order": "scores", "scores": order.fields, "lowest": order.kind == "rank"}


def _could_differ(sample: Sample, certain: Order, other: Order) -> bool:
    """Whether a field without a certain meaning says anything but what the certain one says."""
    if other.kind == "rank":
        ways = [Order("rank", other.fields), Order("scores", other.fields)]
    elif other.kind == "label" and len(other.values) == 2:
        ways = [Order("label", other.fields, Labels.of(meaning)) for meaning in refusals.meanings_of(other)]
    else:
        return False  # one value decides nothing, more are grades or counts; toxicity and loss measure something else
    return all(_differ(sample, certain, way) for way in ways)


def _differ(sample: Sample, one: Order, other: Order) -> bool:
    """Whether two orders prefer different responses in some record."""
    answers = sample.answers
    layouts = [Layout(responses=answers.fields, prompt=None, **_parts_of(order, answers)) for order in (one, other)]
    places = ([_place(record, layout) for layout in layouts] for record in sample.records)
    return any(None not in both and both[0] != both[1] for both in places)


def _place(record: Any, layout: Layout) -> tuple[int, int] | None:
    """The places of the better and the worse response; None where the record has no order."""
    held = get(record, layout.chosen) if layout.is_list else layout.responses
    if not isinstance(held, list | tuple) or len(held) < 2:
        return None
    try:
        return places_of(record, layout, len(held), Counter())
    except (RecordError, NoSignalError):
        return None


# Sides that name other fields


def _refers(sample: Sample, *, only_names: bool) -> tuple[tuple[str, str], ...]:
    """Pairs (value, field) where chosen and rejected name fields with the responses in every record; else nothing.

    Letters beside options A to D or a list of choices are answers themselves, as in files of multiple choice.
    """
    sides = sample.answers.fields
    rows = [[get(record, field) for field in sides] for record in sample.records]
    if any(isinstance(value, bool) or not isinstance(value, str | int) for row in rows for value in row):
        return ()
    texts = [(as_text(chosen), as_text(rejected)) for chosen, rejected in rows]
    if any(chosen == rejected for chosen, rejected in texts):
        return ()
    fields = {key for record in sample.records for key, value in record.items() if isinstance(value, _TEXTS)}
    others = fields - {*sides, sample.prompt}
    exact = {as_text(key): key for key in others}

    def resolves(record: Record, row: Sequence[str]) -> bool:
        return all(text in exact and isinstance(record.get(exact[text]), _TEXTS) for text in row)

    if all(resolves(record, row) for record, row in zip(sample.records, texts, strict=True)):
        options = sorted(key for key in others if len(key) == 1)
        if any(len(text) > 1 for row in texts for text in row):
            return tuple((key, key) for key in sorted(others))
        if len(options) != 2 or only_names:
            return ()
        raise refusals.letters(sample, options)
    return () if only_names else _by_letters(sample, [value for row in rows for value in row])


def _by_letters(sample: Sample, values: Sequence[Any]) -> tuple[tuple[str, str], ...]:
    """The fields that letters or numbers such as A and B mean beside response_a and response_b."""
    sides = sample.answers.fields
    groups = names.responses_in({k: v for k, v in sample.records[0].items() if k not in sides})
    for group in groups:
        meant = dict(zip(group.ends, group.fields, strict=True))
        ends = {as_text(value): names.end_named(value, group.ends) for value in values}
        if None in ends.values():
            continue
        if len(group.fields) == 2:
            spelled = {value: meant[str(end)] for value, end in ends.items()}
            return tuple((spelled | meant).items())
        raise refusals.letters(sample, group.fields)
    for group in groups:
        beside = replace(sample, answers=Answers(group.fields, group.ends))
        if all(naming_fields(beside, side) for side in sides):
            raise refusals.repeated_names(sample, naming_fields(beside, sides[0]), group.fields)
    return ()


# The responses of a record and their order


def responses_of(record: Record, layout: Layout) -> list[Any]:
    """All responses of a record, in the order of their fields or of their list."""
    if layout.refers:
        return [_referred(record, layout, field) for field in layout.responses]
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
    places = (0, count - 1) if layout.order == "names" else _places_by_label(record, layout)
    if len(scores) == count and (better := scores[places[0]]) is not None and (worse := scores[places[1]]) is not None:
        if better == worse:
            notes[RecordNote.TIED_SCORES] += 1
        elif (better > worse) == layout.lowest:
            notes[RecordNote.AGAINST_LABEL] += 1
    return places


def _places_by_label(record: Record, layout: Layout) -> tuple[int, int]:
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
    value = get(record, field)
    if value is MISSING or isinstance(value, list | dict):
        raise RecordError(f"{field}: expected a label, got {'nothing' if value is MISSING else kind_of(value)}", SKIP)
    if is_empty(value):
        raise NoSignalError("no label")  # nobody said which response is preferred
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
    if isinstance(number, int):  # of any size
        return number
    if math.isinf(number):
        raise RecordError(f"{field}: {number} is no score", SKIP)
    return None if math.isnan(number) else number


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
