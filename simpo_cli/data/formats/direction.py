"""What says which response of a file is preferred: exactly one thing, or the file is refused.

Fields that are named as chosen and rejected say it by their names. Others never do by their place: a label, winner
columns, scores or ranks must say it, and the meaning of their values must be certain, by their names or because the
person or a known layout gives it.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from simpo_cli.data.formats import names, refusals
from simpo_cli.data.formats.fields import get, words_of
from simpo_cli.data.formats.labels import Labels, as_text, derived
from simpo_cli.data.formats.layout import Layout
from simpo_cli.data.formats.orders import (
    Answers,
    Order,
    Records,
    checking_scores,
    fields_beside,
    find_orders,
    naming_fields,
    other_fields,
    two_valued,
    values_of,
)
from simpo_cli.data.formats.preferred import NoSignalError, places_of
from simpo_cli.data.formats.stated import Stated
from simpo_cli.data.raw import RecordError
from simpo_cli.errors import UserError

_TEXTS = (str, list, dict)

Parts = dict[str, Any]
"""Attributes of a layout."""


def direction_of(records: Records, answers: Answers, stated: Stated, name: str, prompt: str | None) -> Parts:
    """The part of the layout that says which response is preferred.

    Args:
        records: records of the sample that have the responses.
        answers: the fields of the responses.
        stated: what the person or a known layout says.
        name: the file, for messages.
        prompt: the prompt's field.

    Raises:
        UserError: nothing says it, it is not certain what does, or two things say different orders.
    """
    checks = tuple(said for part in ("score_chosen", "score_rejected") if (said := stated.field(part)))
    if len(checks) == 1:
        lacking = "score_rejected" if "score_chosen" in stated.columns else "score_chosen"
        checks = (stated.field("score_chosen") or lacking, stated.field("score_rejected") or lacking)
    if stated.direction is not None:
        return _as_said(answers, stated, name) | {"scores": checks}
    if "label" in stated.columns or stated.labels:
        part = "rank" if "rank" in stated.columns else "scores"
        if part in stated.columns:  # beside a label they are compared with it
            measured = _by_scores(answers, stated, part, name, prompt)
            checks, lowest = measured["scores"], measured["lowest"]
            return _by_label(records, answers, stated, name, prompt) | {"scores": checks, "lowest": lowest}
        return _by_label(records, answers, stated, name, prompt) | {"scores": checks}
    if (part := "rank" if "rank" in stated.columns else "scores") in stated.columns:
        return _by_scores(answers, stated, part, name, prompt)
    if "best" in stated.columns:
        raise UserError(
            "columns says which score is best, and names neither scores nor rank.",
            "Add scores: [FIELD, FIELD], or leave best out.",
            where=name,
        )
    is_said = "chosen" in stated.columns or "rejected" in stated.columns
    if not (is_said or answers.named):
        return _found(records, answers, name, prompt)
    named = answers.named or all(map(names.says_a_side, answers.fields))
    if refers := _refers(records, answers, name, prompt, only_names=is_said):
        return {"refers": refers}
    if named:
        return {"scores": checks or checking_scores(records, *answers.fields)}
    remark = f"{answers.fields[0]} is taken as chosen because columns says so"
    if stated.by_person is None or "chosen" in stated.by_person or "rejected" in stated.by_person:
        used = frozenset((*(field for part in stated.columns for field in stated.fields(part)), prompt or ""))
        if orders := find_orders(records, answers, used):
            raise refusals.unmapped(answers, prompt, orders[0], name)
        return {"scores": checks, "remarks": (remark,)}
    return {"scores": checks or checking_scores(records, *answers.fields)}  # a known layout says it


def _as_said(answers: Answers, stated: Stated, name: str) -> Parts:
    """The first response is the better one, in words of the person or by a known layout."""
    others = [part for part in ("label", "scores", "rank") if part in stated.columns]
    if others:
        raise UserError(
            f"direction says that the first response is the better one, and columns names {others[0]}.",
            f"Leave out direction where {others[0]} says which is better, or take {others[0]} out.",
            where=name,
        )
    if answers.named or (stated.by_person is not None and "direction" not in stated.by_person):
        return {}  # the names of the fields or a known layout say it
    first = f"the first of {answers.fields[0]}" if answers.is_list else answers.fields[0]
    return {"remarks": (f"{first} is taken as chosen because direction says so",)}


def _by_label(records: Records, answers: Answers, stated: Stated, name: str, prompt: str | None) -> Parts:
    fields = stated.fields("label") or _label_of_meanings(records, answers, name)
    _require_same_order(fields[:2], answers, name)
    if len(answers.fields) > 2:
        raise UserError(
            f"{fields[0]} is a label, which is for two responses, and there are {len(answers.fields)}.",
            "Name two of them: answers: [FIELD, FIELD].",
            where=name,
        )
    counts = values_of(records, fields[0])
    if stated.labels:
        labels = Labels.of(stated.labels)
    elif len(fields) > 1:
        sides = ["first", "second", *["tie"] * (len(fields) - 2)]
        labels = Labels.of({side: [f for f, s in zip(fields, sides, strict=True) if s == side] for side in set(sides)})
    else:
        named = [order for order in find_orders(records, answers, frozenset()) if order.fields == fields]
        if named and named[0].named_by:
            return _label_parts(named[0], answers)
        two = () if answers.is_list else answers.fields
        scalars = [held.value for held in counts if isinstance(held.value, str | int | float | bool)]
        labels, unclear = derived(fields[0], scalars, two, answers.two_ends, stated=True)
        if named and named[0].kind == "text":
            raise refusals.no_direction(answers, prompt, named, name)
        if names.is_about_loser(fields[0]):  # what it names may be the worse one
            labels, unclear = Labels(), scalars
        if unclear:
            order = Order("label", fields, labels if labels.values else None, certain=False, values=counts)
            raise refusals.no_direction(answers, prompt, [order], name)
    return _label_parts(Order("label", fields, labels, values=counts), answers)


def _require_same_order(fields: Sequence[str], answers: Answers, name: str) -> None:
    """Refuse fields of scores or winners whose names say the reverse of the order of the responses."""
    if len(fields) == len(answers.fields) == 2 and any(
        found == tuple(fields[::-1]) for found, _ in fields_beside(fields, answers.fields)
    ):
        raise UserError(
            f"columns gives {' and '.join(fields)} for the responses {' and '.join(answers.fields)}, in another order.",
            f"Give both in one order: [{', '.join(fields[::-1])}].",
            where=name,
        )


def _label_parts(order: Order, answers: Answers) -> Parts:
    assert order.labels is not None
    shown = ("the first", "the second") if answers.is_list else answers.fields[:2]
    listed = tuple(pair for pair in order.labels.values if len(order.fields) > 1 or order.has(pair[0]))
    meaning = Labels(listed, order.labels.bounds).shown(*shown)
    remarks = (f"{' / '.join(order.fields)}: {meaning}",) if meaning else ()
    if order.named_by:
        remarks = (f"{order.shown} repeats {' or '.join(order.named_by)}",)
    named_by = {"named_by": order.named_by}
    return {"order": "label", "label": order.fields, "labels": order.labels, "remarks": remarks, **named_by}


def _label_of_meanings(records: Records, answers: Answers, name: str) -> tuple[str, ...]:
    """The field that `labels` is about where `columns` does not name it."""
    orders = [order for order in find_orders(records, answers, frozenset()) if order.kind == "label"]
    if len(orders) == 1:
        return orders[0].fields
    found = " or ".join(order.shown for order in orders)
    raise UserError(
        "labels says what the values of a label mean, and columns does not name the label.",
        f"Add label: FIELD to columns; it may be {found}." if found else "Add label: FIELD to columns.",
        where=name,
    )


def _by_scores(answers: Answers, stated: Stated, part: str, name: str, prompt: str | None) -> Parts:
    fields = stated.fields(part)
    if not answers.is_list and len(fields) != len(answers.fields):
        raise UserError(
            f"columns gives {len(fields)} fields of {part} and {len(answers.fields)} responses.",
            f"Give one for each response, in their order: {part}: [{', '.join(['FIELD'] * len(answers.fields))}].",
            where=name,
        )
    _require_same_order(fields, answers, name)
    best = stated.field("best")
    certain = part == "scores" and not any(
        names.kind_of_score(words_of(field)) in ("unclear", "rank") for field in fields
    )
    if best is None and not certain:
        kind = "rank" if part == "rank" else "scores"
        raise refusals.no_direction(answers, prompt, [Order(kind, fields, certain=False)], name)  # type: ignore[arg-type]
    return {"order": "scores", "scores": fields, "lowest": best == "lowest"}


def _found(records: Records, answers: Answers, name: str, prompt: str | None) -> Parts:
    """The one thing in the records that orders responses without an order by name."""
    used = frozenset((prompt,)) if prompt else frozenset()
    orders = find_orders(records, answers, used)
    certain = [order for order in orders if order.certain]
    if not certain:
        held = [get(record, answers.fields[0]) for record in records if answers.is_list]
        several = any(isinstance(one, list) and len(one) > 2 for one in held)
        others, maybe = other_fields(records, answers, used), two_valued(records, answers, used)
        raise refusals.no_direction(answers, prompt, orders, name, others, maybe, several=several)
    for one, other in pairwise(certain):
        if _differ(records, answers, one, other):
            raise refusals.contradiction(answers, prompt, one, other, name)
    for other in orders:
        if not other.certain and _could_differ(records, answers, certain[0], other):
            raise refusals.contradiction(answers, prompt, certain[0], other, name)
    parts = _parts_of(certain[0], answers)
    if parts["order"] == "label":
        scored = next((order.fields for order in certain if order.kind == "scores"), ())
        return parts | {"scores": scored}
    return parts


def _parts_of(order: Order, answers: Answers) -> Parts:
    if order.kind == "label":
        return _label_parts(order, answers)
    return {"order": "scores", "scores": order.fields, "lowest": order.kind == "rank"}


def _differ(records: Records, answers: Answers, one: Order, other: Order) -> bool:
    """Whether two orders prefer different responses in some record."""
    layouts = [_layout_of(order, answers) for order in (one, other)]
    for record in records:
        places = [_place(record, layout, answers) for layout in layouts]
        if None not in places and places[0] != places[1]:
            return True
    return False


def _could_differ(records: Records, answers: Answers, certain: Order, other: Order) -> bool:
    """Whether a field without a certain meaning says anything but what the certain one says."""
    if other.kind == "scores":
        return False  # names such as toxicity and loss measure something else
    if other.kind == "rank":
        ways = [Order("rank", other.fields), Order("scores", other.fields)]
        return all(_differ(records, answers, certain, way) for way in ways)
    if other.kind == "text" or len(other.values) != 2:
        return False  # one value decides nothing; more are grades or counts
    meanings = [Labels.of(meaning) for meaning in refusals.meanings_of(other)]
    ways = [Order("label", other.fields, labels) for labels in meanings]
    return all(_differ(records, answers, certain, way) for way in ways)


def _layout_of(order: Order, answers: Answers) -> Layout:
    first, last = answers.fields[0], answers.fields[-1]
    several = answers.fields if len(answers.fields) != 2 else ()
    return Layout(chosen=first, rejected=last, prompt=None, answers=several, **_parts_of(order, answers))


def _place(record: Any, layout: Layout, answers: Answers) -> tuple[int, int] | None:
    """The places of the better and the worse response; None where the record has no order."""
    held = get(record, answers.fields[0]) if answers.is_list else answers.fields
    try:
        return places_of(record, layout, len(held) if isinstance(held, list | tuple) else 0, Counter())
    except (RecordError, NoSignalError):
        return None


# Sides that name other fields


def _refers(
    records: Records, answers: Answers, name: str, prompt: str | None, *, only_names: bool
) -> tuple[tuple[str, str], ...]:
    """Pairs (value, field) where chosen and rejected name fields with the responses in every record; else nothing.

    Letters beside options A to D or a list of choices are answers themselves, as in files of multiple choice.
    """
    if answers.is_list or len(answers.fields) != 2:
        return ()
    said = [[get(record, field) for field in answers.fields] for record in records]
    if any(isinstance(value, bool) or not isinstance(value, str | int) for row in said for value in row):
        return ()
    if any(as_text(row[0]) == as_text(row[1]) for row in said):
        return ()
    others = {
        key
        for record in records
        for key, value in record.items()
        if isinstance(key, str) and key not in (*answers.fields, prompt) and isinstance(value, _TEXTS)
    }
    exact = {as_text(key): key for key in others}
    if all(_resolves(record, exact, row) for record, row in zip(records, said, strict=True)):
        options = sorted(key for key in others if len(key) == 1)
        if any(len(as_text(value)) > 1 for row in said for value in row):
            return tuple((key, key) for key in sorted(others))
        if len(options) != 2 or only_names:
            return ()
        raise refusals.letters(answers, prompt, options, name)
    if only_names:
        return ()
    return _by_letters(records, said, answers, name, prompt)


def _resolves(record: Any, fields: Any, row: Sequence[Any]) -> bool:
    return all(as_text(value) in fields and isinstance(record.get(fields[as_text(value)]), _TEXTS) for value in row)


def _by_letters(
    records: Records, said: Sequence[Sequence[Any]], answers: Answers, name: str, prompt: str | None
) -> tuple[tuple[str, str], ...]:
    """The fields that letters or numbers such as A and B mean beside response_a and response_b."""
    groups = names.responses_in({k: v for k, v in records[0].items() if k not in answers.fields})
    for group in groups:
        meant = dict(zip(group.ends, group.fields, strict=True))
        values = {as_text(value): names.end_named(value, group.ends) for row in said for value in row}
        if not all(end is not None for end in values.values()):
            continue
        if len(group.fields) == 2:
            spelled = {value: meant[str(end)] for value, end in values.items()}
            return tuple((spelled | meant).items())
        raise refusals.letters(answers, prompt, group.fields, name)
    for group in groups:
        beside = Answers(group.fields, group.ends)
        if all(naming_fields(records, side, beside) for side in answers.fields):
            raise refusals.repeated_names(
                answers, naming_fields(records, answers.fields[0], beside), group.fields, name
            )
    return ()
