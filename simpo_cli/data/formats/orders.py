"""What in a file's records could say which response is preferred: labels, winner columns, scores, ranks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from simpo_cli.data.formats import names
from simpo_cli.data.formats.fields import MISSING, get, words_of
from simpo_cli.data.formats.labels import Labels, as_number, as_text, derived, label_words, shown_value
from simpo_cli.data.formats.preferred import is_empty, numbers_in
from simpo_cli.data.formats.unused import is_metadata, without_places

Records = Sequence[Mapping[str, Any]]

_MOST_VALUES = 12  # of a column that is shown as a label
_LONGEST_VALUE = 30
_ASKED = frozenset(("prompt", "instruction", "input", "system", "system_prompt", "system_message", "history", "tools"))
_FIRST_SCORES = ("overall_score", "score", "rating", "reward", "scores", "ratings", "rewards")


@dataclass(frozen=True)
class Answers:
    """The fields of the responses, before it is known which of them is preferred.

    Attributes:
        fields: one field for each response, or one that holds a list of them.
        ends: what tells the fields' names apart, such as ("a", "b"); empty where nothing usual does.
        text: where the text stands in each object of a list.
        named: the names say that the first is the chosen and the second the rejected response.
    """

    fields: tuple[str, ...]
    ends: tuple[str, ...] = ()
    text: str = ""
    named: bool = False

    @property
    def is_list(self) -> bool:
        return len(self.fields) == 1

    @property
    def column(self) -> str | list[str]:
        """Its fields as `columns` writes them."""
        return column_of(self.fields)

    @property
    def two_ends(self) -> tuple[str, str] | None:
        return (self.ends[0], self.ends[1]) if len(self.ends) == 2 else None


@dataclass(frozen=True)
class Order:
    """One thing that could say which response is preferred.

    Attributes:
        kind: `label` (also winner columns), `scores`, `rank`, `text` (the preferred response stands there once more).
        fields: its fields.
        labels: what the values of a label mean, as far as that is certain.
        certain: whether it is known which value is the better one.
        values: the values of a label, with their counts.
        named_by: fields such as model_a and model_b whose values a label repeats.
    """

    kind: Literal["label", "scores", "rank", "text"]
    fields: tuple[str, ...]
    labels: Labels | None = None
    certain: bool = True
    values: Counter[Any] = field(default_factory=Counter)
    named_by: tuple[str, ...] = ()

    def has(self, value: Any) -> bool:
        """Whether the label has a value in the sample."""
        return _Value(value) in self.values

    @property
    def shown(self) -> str:
        """Its fields in words."""
        return " and ".join(self.fields)

    @property
    def column(self) -> str | list[str]:
        """Its fields as `columns` writes them."""
        return column_of(self.fields)


def column_of(fields: Sequence[str]) -> str | list[str]:
    return fields[0] if len(fields) == 1 else list(fields)


def values_of(records: Records, name: str) -> Counter[Any]:
    """How often each value of a field occurs, empty cells left out; lists and objects count by their text."""
    counts: Counter[Any] = Counter()
    for record in records:
        value = get(record, name)
        if value is not MISSING and not is_empty(value):
            counts[_Value(value)] += 1
    return counts


class _Value:
    """A value that is equal only to values of its own JSON type, and can be counted."""

    __slots__ = ("key", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        scalar = isinstance(value, str | int | float | bool)
        self.key = (isinstance(value, bool), isinstance(value, str), value if scalar else str(value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Value) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def shown_counts(counts: Counter[Any], most: int = 8) -> str:
    """Values with their counts: `0 (12 times), 1 (9 times)`."""
    shown = [f"{shown_value(held.value)} ({count:,} x)" for held, count in counts.most_common(most)]
    return ", ".join(shown) + (", ..." if len(counts) > most else "")


def find_orders(records: Records, answers: Answers, used: frozenset[str]) -> list[Order]:
    """Everything that could order the responses, the certain ones first.

    Args:
        records: records of the sample that have the responses.
        answers: the responses.
        used: fields that play another part.
    """
    inside = tuple(f"{field}." for field in answers.fields)  # what one response says of itself orders none
    keys = [k for k in _keys_of(records) if k not in used and k not in answers.fields and not k.startswith(inside)]
    flags = _winner_columns(records, keys, answers)
    taken = {name for order in flags for name in order.fields}
    scores = _scores(records, keys, answers)
    taken |= {name for order in scores for name in order.fields}
    labels = [order for key in keys if key not in taken and (order := _label(records, key, answers)) is not None]
    found = [*labels, *flags, *scores]
    if not any(order.certain for order in found):
        found += [order for key in keys if (order := _label_by_values(records, key, answers)) is not None]
    return sorted(found, key=lambda order: not order.certain)


def _keys_of(records: Records) -> list[str]:
    """The names of all fields, and of what stands one object or list deeper: metadata.score_a, votes.0.winner."""
    keys: dict[str, None] = {}
    for record in records:
        for key, value in record.items():
            if isinstance(key, str):
                keys.update(dict.fromkeys(_keys_below(key, value)))
    return list(keys)


def _keys_below(key: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{key}.{inner}" for inner in value if isinstance(inner, str)]
    if isinstance(value, list) and value:
        first = value[0]
        inside = [f"{key}.0.{inner}" for inner in first if isinstance(inner, str)] if isinstance(first, dict) else []
        return [key, f"{key}.0", *inside]
    return [key]


def _label(records: Records, name: str, answers: Answers) -> Order | None:
    """The label that a field is, certain or not; None if it is none."""
    is_named_so = names.may_be_label(name)
    counts = values_of(records, name)
    values = [held.value for held in counts]
    if not values or any(not isinstance(value, str | int | float | bool) for value in values):
        return None
    if not is_named_so and not names.may_name_model(name):
        return Order("label", (name,), certain=False, values=counts) if _is_signed(values) else None
    if len(answers.fields) > 2:
        return Order("label", (name,), certain=False, values=counts)
    fields = () if answers.is_list else answers.fields
    labels, unclear = derived(name, values, fields, answers.two_ends, stated=False)
    is_certain = names.says_which_is_better(names.last_words(name)) and not names.is_about_loser(name)
    is_certain = is_certain and not any(part.isdigit() for part in name.split("."))
    if not unclear and is_certain:
        return Order("label", (name,), labels, values=counts)
    if is_certain and (by := naming_fields(records, name, answers)):
        sides: list[tuple[Any, Any]] = [(by[0], "first"), (by[1], "second")]
        sides += [(value, "tie") for value in values if label_words(value) == "tie"]
        return Order("label", (name,), Labels(tuple(sides)), values=counts, named_by=by)
    texts = [value for value in values if isinstance(value, str)]
    if fields and len(texts) == len(values) and _repeats_a_response(records, name, fields):
        return Order("text", (name,), certain=False)
    if texts and (len(values) > _MOST_VALUES or max(map(len, texts)) > _LONGEST_VALUE):
        return None  # a comment
    if (not is_named_so and unclear) or (len(texts) == len(values) == 1 and not labels.values):
        return None  # what is the same in every record and names no response orders none
    is_known = bool(labels.values) and is_named_so and (is_certain or "0" in name.split("."))
    return Order("label", (name,), labels if is_known else None, certain=False, values=counts)


def _is_signed(values: Sequence[Any]) -> bool:
    """Whether values are numbers on both sides of zero, as the strength of a preference is."""
    found = [number for value in values if (number := as_number(value)) is not None]
    return len(found) == len(values) and min(found) < 0 < max(found)


def other_fields(records: Records, answers: Answers, used: frozenset[str]) -> list[str]:
    """Fields that play no part and may say the order, for a refusal to name."""
    taken = {*used, *answers.fields, *_ASKED, *(f"{field}.{answers.text}" for field in answers.fields)}
    found: dict[str, None] = {}
    for key in _keys_of(records):
        inside = key.startswith(f"{answers.fields[0]}.")
        name = without_places(key) if inside else key
        if name in taken or names.says_only_where_from(key):
            continue
        if any(not is_empty(value := get(record, key)) and value is not MISSING and value != [] for record in records):
            found[name] = None
    return list(found)


def _label_by_values(records: Records, name: str, answers: Answers) -> Order | None:
    """A field that names both responses, whatever it is called itself: by left and right, or 1 and 2 as they do."""
    if len(answers.fields) != 2 or names.may_be_label(name) or is_metadata(name):
        return None
    counts = values_of(records, name)
    values = [held.value for held in counts]
    if not 2 <= len(values) <= _MOST_VALUES or not all(isinstance(value, str | int) for value in values):
        return None
    labels, unclear = derived(name, values, answers.fields, answers.two_ends, stated=False)
    found = {"first", "second"} <= {labels.side(value) for value in values} and not unclear
    return Order("label", (name,), certain=False, values=counts) if found else None


def two_valued(records: Records, answers: Answers, used: frozenset[str]) -> list[Order]:
    """Fields of two or three numbers or booleans, which may be a label although their name does not say so: pick, y."""
    if len(answers.fields) != 2:
        return []
    of_one_side = {key for fields, _ in fields_beside(_keys_of(records), answers.fields) for key in fields}
    found = []
    for key in other_fields(records, answers, used):
        if key in of_one_side or is_metadata(key) or names.is_about_text(words_of(key)):
            continue
        counts = values_of(records, key)
        values = [held.value for held in counts]
        if 2 <= len(values) <= 3 and all(isinstance(one, bool) or as_number(one) is not None for one in values):
            found.append(Order("label", (key,), certain=False, values=counts))
    return found


def naming_fields(records: Records, label: str, answers: Answers) -> tuple[str, ...]:
    """Fields such as model_a and model_b, one of which the label repeats in every record that is no tie."""
    if len(answers.fields) != 2:
        return ()
    keys = [key for key in _keys_of(records) if key not in (label, *answers.fields)]
    for fields, _ in fields_beside(keys, answers.fields):
        rows = [(get(record, label), [get(record, one) for one in fields]) for record in records]
        rows = [(value, held) for value, held in rows if isinstance(value, str) and label_words(value) != "tie"]
        if rows and all(held.count(value) == 1 for value, held in rows):
            return fields
    return ()


def _repeats_a_response(records: Records, name: str, fields: Sequence[str]) -> bool:
    """Whether a field holds the text of one of the responses in every record that has it."""
    held = [record for record in records if get(record, name) is not MISSING]
    return all(get(record, name) in [get(record, field) for field in fields] for record in held)


def _winner_columns(records: Records, keys: Sequence[str], answers: Answers) -> list[Order]:
    """0/1 fields of which one is set: winner_model_a, winner_model_b, winner_tie."""
    found = []
    for group in names.groups_of(keys):
        if len(group.fields) != 2 or not names.says_winner(group.words):
            continue
        won = group.fields if names.are_in_order(answers.ends) else group.fields[::-1]
        tie = names.tie_beside(group, keys)
        fields = won if tie is None else (*won, tie)
        cells = [as_text(get(record, name)) for record in records for name in fields if name in record]
        if cells and set(cells) <= {"0", "1", "true", "false"}:
            sides: list[tuple[Any, Any]] = [(fields[0], "first"), (fields[1], "second")]
            sides += [(tie, "tie")] if tie else []
            found.append(Order("label", fields, Labels(tuple(sides))))
    return found


def _scores(records: Records, keys: Sequence[str], answers: Answers) -> list[Order]:
    """Scores and ranks of the responses: fields beside them, a list beside their list, or fields of its objects."""
    if not answers.is_list:
        return [
            Order("rank" if kind == "rank" else "scores", fields, certain=kind == "higher")
            for fields, words in fields_beside(keys, answers.fields)
            if (kind := names.kind_of_score(words)) and _may_be_scores(records, fields, words)
        ] + [
            Order("scores", fields, certain=False)
            for fields, words in fields_beside(keys, answers.fields)
            if not names.kind_of_score(words)
            and not names.is_about_text(words)
            and numbers_in([get(record, field) for record in records for field in fields])
        ]
    (name,) = answers.fields
    inside = [one for record in records for one in (get(record, name) or ()) if isinstance(one, dict)]
    found: list[tuple[str, str]] = []
    for key in dict.fromkeys(key for one in inside for key in one if isinstance(key, str)):
        kind = names.kind_of_score(words_of(key))
        if kind and numbers_in([one.get(key, MISSING) for one in inside]):
            found.append((f"{name}.{key}", kind))
    for key in keys:
        kind = names.kind_of_score(words_of(key))
        lists = [record[key] for record in records if isinstance(record.get(key), list)]
        if kind and lists and all(numbers_in(one) for one in lists if one):
            found.append((key, kind))
    orders = [Order("rank" if kind == "rank" else "scores", (key,), certain=kind == "higher") for key, kind in found]
    usual = [order for order in orders if order.certain and order.fields[0].rpartition(".")[2] in _FIRST_SCORES]
    if usual:
        first = min(usual, key=lambda order: _FIRST_SCORES.index(order.fields[0].rpartition(".")[2]))
        orders = [first, *(order for order in orders if not order.certain)]
    return orders


def fields_beside(keys: Sequence[str], fields: Sequence[str]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Fields that go with the responses one by one, as `score_a` and `score_b` do; and the words that they share."""
    spelled = [set(words_of(name)) for name in fields]
    common = set.intersection(*spelled)
    apart = [words - common for words in spelled]
    if not all(apart):
        return []
    found: dict[frozenset[str], dict[int, str]] = {}
    for key in keys:
        words = set(words_of(key))
        places = [place for place, own in enumerate(apart) if own <= words]
        if len(places) == 1:
            found.setdefault(frozenset(words - apart[places[0]]), {}).setdefault(places[0], key)
    return [
        (tuple(by_place[place] for place in range(len(fields))), tuple(sorted(words)))
        for words, by_place in found.items()
        if len(by_place) == len(fields)
    ]


def checking_scores(records: Records, chosen: str, rejected: str) -> tuple[str, ...]:
    """Scores beside named sides, which must not contradict them: score_chosen, rejected_rating, metadata.chosen_score.

    They stand beside the sides or one object deeper (also `scores.chosen`), named after the sides or by the usual
    names of sides.
    """
    for fields in ((chosen, rejected), ("chosen", "rejected")):
        for found, words in fields_beside([key for key in _keys_of(records) if key not in fields], fields):
            if names.kind_of_score(words) == "higher" and _may_be_scores(records, found, words):
                return found
    return ()


def _may_be_scores(records: Records, fields: Sequence[str], words: Sequence[str]) -> bool:
    """Whether fields of such names hold scores: numbers, or what a field that is just called score holds instead."""
    values = [get(record, name) for record in records for name in fields]
    if any(isinstance(value, list | dict) for value in values):
        return False
    return numbers_in(values) or names.is_just_a_score(words)
