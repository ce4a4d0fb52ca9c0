"""Why a file is not read as pairs, with lines to paste that read it in each of the ways it may be meant."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from simpo_cli.data.formats import names
from simpo_cli.data.formats.known import NEEDS
from simpo_cli.data.formats.layout import Layout, Stated, label_words, unused_fields
from simpo_cli.data.formats.names import MISSING, Record, Records, as_number, column_of, get, nearest
from simpo_cli.data.formats.orders import Answers, Order, Sample, other_fields, shown_counts, two_valued
from simpo_cli.errors import UserError

_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*")
_YAML_WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null", "none"))


def line_of(
    name: str, columns: Mapping[str, Any], labels: Mapping[str, Any] | None = None, direction: str | None = None
) -> str:
    """The line of a recipe that reads a file so."""
    source: dict[str, Any] = {"path": name, "columns": columns}
    source |= {"labels": labels} if labels else {}
    source |= {"direction": direction} if direction else {}
    return f"data.train: [{_flow(source)}]"


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    match value:
        case Mapping():
            return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_flow, value)) + "]"
        case str() if _PLAIN.fullmatch(value) and value.lower() not in _YAML_WORDS:
            return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _either(problem: str, lines: Sequence[str], name: str) -> UserError:
    """A refusal that leaves the choice to the person: each line is right when pasted, for what it says."""
    fix = "Say which in the recipe (stats takes the same as --columns, --labels and --direction):"
    if not lines:
        fix = "Name the field that says it in columns, and what its values mean in labels."
    return UserError(problem, "\n  ".join([fix, *lines]), where=name)


def _columns_of(prompt: str | None, fields: Sequence[str]) -> dict[str, Any]:
    """Prompt and responses as a mapping: sides that are named as such, or answers without an order."""
    asked = {"prompt": prompt} if prompt else {}
    if len(fields) == 2 and all(map(names.says_a_side, fields)):
        return {**asked, "chosen": fields[0], "rejected": fields[1]}
    return {**asked, "answers": column_of(fields)}


# What a mapping says


def require_fields(records: Records, stated: Stated, name: str) -> None:
    """Refuse a mapping that names a field which no record has."""
    named = [(part, field) for part in stated.own if part != "best" for field in stated.fields(part)]
    for part, field in named:
        if all(_is_missing(record, field, part) for record in records):
            near = nearest(field, records[0])
            raise UserError(
                f"columns says that {part} is {field!r}, and no record has that field.",
                (f"Did you mean {near}? " if near else "")
                + f"Its fields are {', '.join(list(records[0])[:20]) or 'none'}.",
                where=name,
            )


def _is_missing(record: Record, field: str, part: str) -> bool:
    if get(record, field) is not MISSING:
        return False
    if part not in ("answers", "scores", "rank"):
        return True
    keys = field.split(".")  # the rest of the name may be inside the objects of a list
    for count in range(1, len(keys)):
        entries = get(record, ".".join(keys[:count]))
        if isinstance(entries, list):
            return all(get(one, ".".join(keys[count:])) is MISSING for one in entries if isinstance(one, dict))
    return True


def require_no_response(responses: Sequence[str], stated: Stated, name: str) -> None:
    """Refuse a mapping whose prompt, or another part of what is asked, is one of the responses that were found."""
    for part in ("prompt", "input", "system", "history"):
        if part in stated.own and stated.columns[part] in responses:
            raise UserError(
                f"columns says that {part} is {stated.columns[part]!r}, which is a response by its name.",
                "Name another field, or say with answers, or with chosen and rejected, which fields are the responses.",
                where=name,
            )


def unmapped(sample: Sample, order: Order) -> UserError:
    """The refusal of a stated order beside a field that would say another."""
    first, second = sample.answers.fields
    values = f" ({shown_counts(order.values)})" if order.values else ""
    lines = _lines_of(order, sample)
    lines.append(line_of(sample.name, {**sample.asked, "chosen": first, "rejected": second}, direction="first"))
    return _either(
        f"columns says that {first} is chosen and {second} rejected, and {order.shown}{values} may say which one is "
        "preferred in each record.",
        lines,
        sample.name,
    )


# Several fields for one part


def two_pairs_of_sides(record: Record, sides: Sequence[tuple[str, str]], name: str) -> UserError:
    prompt = names.prompt_in(record)
    lines = [line_of(name, {**prompt, "chosen": pair[0], "rejected": pair[1]}) for pair in sides]
    return _either(f"holds both {' / '.join(sides[0])} and {' / '.join(sides[1])}.", lines, name)


def several_answers(record: Record, found: Sequence[Answers], name: str) -> UserError:
    shown = " or ".join(" and ".join(answers.fields) for answers in found)
    lines = [line_of(name, {**names.prompt_in(record), "answers": answers.column}) for answers in found]
    return _either(f"may hold its responses in {shown}.", lines, name)


def several_prompts(found: Sequence[str], answers: Sequence[str], name: str) -> UserError:
    lines = [line_of(name, _columns_of(field, answers)) for field in found]
    return _either(f"has several fields that may be the prompt: {', '.join(found)}.", lines, name)


def require_prompt(records: Records, layout: Layout, stated: Stated, name: str) -> None:
    """Refuse texts without a prompt where other fields may be it."""
    texts = [
        field
        for field in unused_fields(records, layout)
        if any(isinstance(get(record, field), str | list | dict) for record in records)
    ][:3]
    if not texts:
        return  # reading the first record says that the prompt is missing
    own = {part: stated.columns[part] for part in stated.own}
    sides = {} if {"chosen", "rejected", "answers"} & own.keys() else _columns_of(None, layout.responses)
    lines = [line_of(name, {"prompt": field, **sides, **own}, stated.labels, stated.direction) for field in texts]
    raise _either(f"has no field that is the prompt by its name; it may be {' or '.join(texts)}.", lines, name)


# The order of the responses


def no_direction(sample: Sample, orders: Sequence[Order]) -> UserError:
    """The refusal of responses whose order nothing says, or nothing says for certain; `orders` are what may say it."""
    answers, name = sample.answers, sample.name
    fields = answers.fields
    held = f"a list of responses, {fields[0]}," if answers.is_list else f"the responses {' and '.join(fields)},"
    if not orders:
        return _by_no_field(sample, f"holds {held} and which one is preferred is told by no field")
    order = orders[0]
    if order.kind == "text":
        preferred, other = ("it", "the other one")[:: -1 if names.is_about_loser(order.fields[0]) else 1]
        return UserError(
            f"holds {held} and the {'preferred' if preferred == 'it' else 'other'} one once more under {order.shown}.",
            f"Write {preferred} into a field chosen, and {other} into a field rejected.",
            where=name,
        )
    lists = [get(record, fields[0]) for record in sample.records] if answers.is_list else [fields]
    if order.kind == "label" and any(isinstance(one, list | tuple) and len(one) > 2 for one in lists):
        problem = f"holds {held} and a label, {order.shown}, which orders two of them only."
        fix = "Write the preferred one into a field chosen, and one of the others into a field rejected."
        return UserError(problem, fix, where=name)
    perhaps = "perhaps " if order.kind == "label" and not names.may_be_label(order.fields[0]) else ""
    counts = shown_counts(order.values) if order.kind == "label" else "the lowest or the highest may be the best"
    lines = _lines_of(order, sample)
    if order.kind == "rank" and answers.is_list and not order.fields[0].startswith(f"{fields[0]}."):
        lines.append(
            f"Neither fits if {order.fields[0]} holds places of {fields[0]}, the best one first: put the responses "
            "in that order then, and say direction: first."
        )
    return _either(
        f"holds {held} and which one is preferred is {perhaps}told by {order.shown!r}, whose meaning is not certain: "
        f"{counts}.",
        lines,
        name,
    )


def _by_no_field(sample: Sample, problem: str) -> UserError:
    """The refusal of responses that no known field orders, with the fields that may still do so."""
    answers, name, fields = sample.answers, sample.name, sample.answers.fields
    listed = sample.asked | {"answers": answers.column}
    others, maybe = other_fields(sample), two_valued(sample)
    if maybe:
        known = "; ".join(f"{order.shown} may be a label: {shown_counts(order.values)}" for order in maybe[:2])
        apart = [field for field in others if (field,) not in [order.fields for order in maybe]]
        beside = f" (others are {', '.join(apart[:8])})" if apart else ""
        lines = [line for order in maybe[:2] for line in _lines_of(order, sample)]
        return _either(f"{problem} that is known{beside}; {known}.", lines, name)
    if others:
        part, other = ("scores", "label") if answers.is_list else ("label", "scores")
        return UserError(
            f"{problem} that is known (others are {', '.join(others[:8])}).",
            f"Name the field that says it, as {part} or as {other}: {line_of(name, listed | {part: 'FIELD'})}\n"
            "  If the first is the better one in every record, say direction: first instead.",
            where=name,
        )
    if answers.is_list:
        line = line_of(name, listed, direction="first")
        return _either(f"{problem}.", [f"{line}   # the first is the best one, the last the worst"], name)
    sides = [sample.asked | {"chosen": c, "rejected": r} for c, r in (fields[:2], fields[1::-1])]
    lines = [f"{line_of(name, one)}   # {one['chosen']} is the better one in every record" for one in sides]
    return _either(f"{problem}.", lines, name)


def contradiction(sample: Sample, one: Order, other: Order) -> UserError:
    """The refusal of a file in which two fields order the responses, and not in the same way."""
    return _either(
        f"both {one.shown} and {other.shown} could say which response is preferred, and they differ.",
        [*_lines_of(one, sample), *_lines_of(other, sample)],
        sample.name,
    )


def _lines_of(order: Order, sample: Sample) -> list[str]:
    """The lines that take one order; both ways of it where its meaning is not certain."""
    listed = sample.asked | {"answers": sample.answers.column}
    if order.kind == "text":
        return []
    if order.kind == "label":
        columns = listed | {"label": column_of(order.fields)}
        is_plain = bool(order.named_by) or (order.certain and len(order.fields) > 1)  # names say what values mean
        return [line_of(sample.name, columns, meaning) for meaning in ([None] if is_plain else meanings_of(order))]
    columns = listed | {"rank" if order.kind == "rank" else "scores": column_of(order.fields)}
    ways: list[dict[str, str]] = [{}] if order.certain else [{"best": "lowest"}, {"best": "highest"}]
    return [line_of(sample.name, {**columns, **best}) for best in ways]


def meanings_of(order: Order) -> list[dict[str, Any]]:
    """What the values of a label may mean: two meanings that are the reverse of each other, or the one that is known.

    Values without a meaning beside others with one are put to the ties, for the person to place.
    """
    values = [value for _, value in order.values]
    if order.labels is not None:
        meanings = order.labels.as_meanings(values)
        unclear = [value for value in values if order.labels.side(value) is None]
        return [meanings | ({"tie": [*meanings.get("tie", []), *unclear]} if unclear else {})]
    ties = [value for value in values if label_words(value) == "tie"]
    rest = [value for value in values if label_words(value) != "tie"]
    found = [number for value in rest if (number := as_number(value)) is not None]
    if found and len(found) == len(rest) and (min(found) < 0 < max(found) or len(found) > 3):
        middle = 0 if min(found) < 0 < max(found) else (min(found) + max(found)) / 2
        ties += [middle] if middle in found else []
        return _both_ways({"below": middle}, {"above": middle}, ties)
    rest.sort(key=lambda value: (str(type(value)), 0 if isinstance(value, str) else value, str(value)))
    if rest == [0, 1, 2] and not ties:  # the tie is the last, or 0 beside the numbers of the responses
        return [*_both_ways([0], [1], [2]), *_both_ways([1], [2], [0])[:1]]
    match rest:
        case []:
            return []
        case [_]:
            return [{"first": rest}, {"second": rest}]
        case [first, second]:
            return _both_ways([first], [second], ties)
    return _both_ways(["VALUE"], ["OTHER VALUE"], ties)[:1]  # which of them say the same is for the person to tell


def _both_ways(one: Any, other: Any, tie: list[Any]) -> list[dict[str, Any]]:
    ties = {"tie": tie} if tie else {}
    return [{"first": first, "second": second, **ties} for first, second in ((one, other), (other, one))]


# Sides that name other fields


def letters(sample: Sample, fields: Sequence[str]) -> UserError:
    """The refusal of letters under chosen and rejected that may be answers, or may name the fields of the answers."""
    chosen, rejected = sample.answers.fields
    lines = [line_of(sample.name, {**sample.asked, "chosen": chosen, "rejected": rejected}, direction="first")]
    if len(fields) == 2:
        meanings = {"first": [fields[0][-1:]], "second": [fields[1][-1:]]}
        lines.append(line_of(sample.name, {**sample.asked, "answers": list(fields), "label": chosen}, meanings))
    return _either(
        f"holds letters or numbers under {chosen} and {rejected}, and texts under {', '.join(fields)}: the answers may "
        "be the one or the other.",
        lines,
        sample.name,
    )


def repeated_names(sample: Sample, holders: Sequence[str], fields: Sequence[str]) -> UserError:
    """The refusal of sides that only repeat which model wrote the response."""
    sides = sample.answers.fields
    line = line_of(sample.name, {"answers": list(fields), "label": sides[0]})
    return UserError(
        f"holds under {' and '.join(sides)} what {' and '.join(holders)} hold, and the responses under "
        f"{' and '.join(fields)}.",
        f"Name the responses and the label in the recipe: {line}",
        where=sample.name,
    )


# No pairs at all


def is_stepwise(record: Record) -> bool:
    """Whether a record holds the steps of one answer with a label each (TRL's stepwise supervision)."""
    labels = record.get("labels")
    return isinstance(labels, list) and bool(labels) and all(isinstance(label, bool) for label in labels)


def require_better(records: Records, name: str) -> None:
    """Refuse a response that is named the worse one beside one whose name says nothing, with the line that says it."""
    sides = {names.worse_alone(record) for record in records}
    named = sides.pop() if len(sides) == 1 else None
    if named is not None:
        problem = f"has {named[1]} and no field that is the chosen response by its name; {named[0]} may be meant."
        fix = "If so, say it in the recipe: " + line_of(name, {"chosen": named[0], "rejected": named[1]})
        raise UserError(problem, fix, where=name)


def no_pairs(record: Record, name: str) -> UserError:
    """Why a file with such records holds no pairs, and the nearest fix."""
    lists = [k for k, v in record.items() if isinstance(v, list) and v and isinstance(v[0], dict)]
    fix = NEEDS
    if any(isinstance(record.get(k), bool) for k in ("label", "kto_tag", "desirable")):
        problem = (
            "holds unpaired feedback (KTO): one response a record with a good or bad label. SimPO compares two "
            "responses to the same prompt."
        )
        fix = "Join a good and a bad response of each prompt into records with prompt, chosen and rejected."
    elif is_stepwise(record):
        problem = "holds stepwise supervision: the steps of one answer, each with a true or false label."
    elif "messages" in record or "conversations" in record or {"instruction", "output"} <= record.keys():
        problem = "holds one response a record, no preferences (data for supervised tuning)."
    elif guessed := names.named_sides(record, names.GUESSED_SIDES):
        columns = names.prompt_in(record) | dict(zip(("chosen", "rejected"), guessed[0], strict=True))
        problem = f"has no fields chosen and rejected; {' and '.join(guessed[0])} may be meant."
        fix = f"If so, say it in the recipe: {line_of(name, columns)}"
    elif len(record) <= 4 and len(lists) == 1:
        problem = f"holds its records under {lists[0]!r}, not as a list of records."
        fix = f"Unwrap it, such as with jq -c '.{lists[0]}[]' FILE > pairs.jsonl."
    else:
        columns = {"prompt": "FIELD_1", "chosen": "FIELD_2", "rejected": "FIELD_3"}
        problem = f"has no fields chosen and rejected; its fields are {', '.join(list(record)[:12]) or 'none'}."
        fix = f"Say in the recipe which they are: {line_of(name, columns)}"
    return UserError(problem, fix, where=name)
