"""What in a file's records could say which response is preferred: labels, winner columns, scores, ranks."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from simpo_cli.data.formats import names
from simpo_cli.data.formats.layout import Labels, Stated, derived, is_metadata, label_words, without_places
from simpo_cli.data.formats.names import MISSING, Records, as_text, get, is_empty, numbers_in, shown_value, words_of
from simpo_cli.data.pair import kind_of

Values = Counter[tuple[str, Any]]
"""How often values occur, each with its JSON kind: 1 and 1.0 are one, 1 and true are not; lists count by their text."""

_SCALARS = frozenset(map(kind_of, ("", 0, True)))
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
        return names.column_of(self.fields)


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
    values: Values = field(default_factory=Counter)
    named_by: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """Its fields in words."""
        return " and ".join(self.fields)


@dataclass(frozen=True)
class Sample:
    """The first records of a file, and what is known of its fields before the order is.

    Attributes:
        records: those that have the responses.
        name: the file, for messages.
        stated: what the person or a known layout says.
        answers: the responses.
        prompt: the prompt's field; None where the responses hold it.
    """

    records: Records
    name: str
    stated: Stated
    answers: Answers
    prompt: str | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """The prompt's field as `columns` writes it."""
        return {"prompt": self.prompt} if self.prompt else {}

    @cached_property
    def keys(self) -> list[str]:
        """The names of all fields, and of what stands one object or list deeper: metadata.score_a, votes.0.winner."""
        keys = (inner for record in self.records for key, value in record.items() for inner in _keys_below(key, value))
        return list(dict.fromkeys(keys))

    @cached_property
    def used(self) -> frozenset[str]:
        """Fields that play a part which orders nothing."""
        parts = self.stated.columns.keys() - {"label", "scores", "rank"}
        return frozenset((*(field for part in parts for field in self.stated.fields(part)), self.prompt or ""))


def _keys_below(key: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{key}.{inner}" for inner in value]
    if isinstance(value, list) and value:
        inside = value[0] if isinstance(value[0], dict) else ()
        return [key, f"{key}.0", *(f"{key}.0.{inner}" for inner in inside)]
    return [key]


def values_of(records: Records, name: str) -> Values:
    """How often each value of a field occurs, empty cells left out."""
    values = (get(record, name) for record in records)
    return Counter(keyed(value) for value in values if value is not MISSING and not is_empty(value))


def keyed(value: Any) -> tuple[str, Any]:
    """A value as it is counted."""
    kind = kind_of(value)
    return kind, value if kind in _SCALARS else str(value)


def scalars_of(values: Values) -> list[Any]:
    """The values that are no lists or objects."""
    return [value for kind, value in values if kind in _SCALARS]


def shown_counts(values: Values) -> str:
    """Values with their counts: `0 (12 x), 1 (9 x)`."""
    most = 8
    counts = [f"{shown_value(value)} ({count:,} x)" for (_, value), count in values.most_common(most)]
    return ", ".join(counts) + (", ..." if len(values) > most else "")


def find_orders(sample: Sample) -> list[Order]:
    """Everything that could order the responses, the certain ones first."""
    answers = sample.answers
    inside = tuple(f"{name}." for name in answers.fields)  # what one response says of itself orders none
    taken = {*sample.used, *answers.fields}
    keys = [key for key in sample.keys if key not in taken and not key.startswith(inside)]
    found = [*_winner_columns(sample, keys), *_scores(sample, keys)]
    taken = {name for order in found for name in order.fields}
    found = [*(order for key in keys if key not in taken and (order := _label(sample, key))), *found]
    if not any(order.certain for order in found):
        found += [order for key in keys if (order := _label_by_values(sample, key))]
    return sorted(found, key=lambda order: not order.certain)


# Labels


def _label(sample: Sample, name: str) -> Order | None:
    """The label that a field is, certain or not; None if it is none."""
    records, answers = sample.records, sample.answers
    is_named_so = names.may_be_label(name)
    counts = values_of(records, name)
    values = scalars_of(counts)
    unsure = Order("label", (name,), certain=False, values=counts)
    if not values or len(values) < len(counts):
        return None
    if not is_named_so and not names.may_name_model(name):
        return unsure if _is_signed(values) else None
    if len(answers.fields) > 2:
        return unsure
    fields = () if answers.is_list else answers.fields
    labels, unclear = derived(name, values, fields, answers.ends, stated=False)
    is_certain = names.says_which_is_better(names.last_words(name)) and not names.is_about_loser(name)
    is_certain = is_certain and not any(part.isdigit() for part in name.split("."))
    if not unclear and is_certain:
        return Order("label", (name,), labels, values=counts)
    if is_certain and (by := naming_fields(sample, name)):
        ties = [value for value in values if label_words(value) == "tie"]
        return Order("label", (name,), Labels.of_flags((*by, *ties)), values=counts, named_by=by)
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
    found = [number for value in values if (number := names.as_number(value)) is not None]
    return len(found) == len(values) and min(found) < 0 < max(found)


def _repeats_a_response(records: Records, name: str, fields: Sequence[str]) -> bool:
    """Whether a field holds the text of one of the responses in every record that has it."""
    held = [record for record in records if get(record, name) is not MISSING]
    return all(get(record, name) in [get(record, field) for field in fields] for record in held)


def naming_fields(sample: Sample, label: str) -> tuple[str, ...]:
    """Fields such as model_a and model_b, one of which the label repeats in every record that is no tie."""
    fields = sample.answers.fields
    if len(fields) != 2:
        return ()
    for beside, _ in fields_beside((key for key in sample.keys if key not in (label, *fields)), fields):
        rows = [(get(record, label), [get(record, one) for one in beside]) for record in sample.records]
        rows = [(value, held) for value, held in rows if isinstance(value, str) and label_words(value) != "tie"]
        if rows and all(held.count(value) == 1 for value, held in rows):
            return beside
    return ()


def _label_by_values(sample: Sample, name: str) -> Order | None:
    """A field that names both responses, whatever it is called itself: by left and right, or 1 and 2 as they do."""
    answers = sample.answers
    if len(answers.fields) != 2 or names.may_be_label(name) or is_metadata(name):
        return None
    counts = values_of(sample.records, name)
    values = scalars_of(counts)
    if not 2 <= len(counts) <= _MOST_VALUES or len(values) < len(counts) or any(isinstance(v, float) for v in values):
        return None
    labels, unclear = derived(name, values, answers.fields, answers.ends, stated=False)
    if unclear or not {"first", "second"} <= {labels.side(value) for value in values}:
        return None
    return Order("label", (name,), certain=False, values=counts)


def other_fields(sample: Sample) -> list[str]:
    """Fields that play no part and may say the order, for a refusal to name."""
    answers = sample.answers
    taken = {*sample.used, *answers.fields, *_ASKED, *(f"{field}.{answers.text}" for field in answers.fields)}
    found: dict[str, None] = {}
    for key in sample.keys:
        name = without_places(key) if key.startswith(f"{answers.fields[0]}.") else key
        if name in taken or names.says_only_where_from(key):
            continue
        values = [get(record, key) for record in sample.records]
        if any(not is_empty(value) and value is not MISSING and value != [] for value in values):
            found[name] = None
    return list(found)


def two_valued(sample: Sample) -> list[Order]:
    """Fields of two or three numbers or booleans, which may be a label although their name does not say so: pick, y."""
    if len(sample.answers.fields) != 2:
        return []
    of_one_side = {key for fields, _ in fields_beside(sample.keys, sample.answers.fields) for key in fields}
    found = []
    for key in other_fields(sample):
        if key in of_one_side or is_metadata(key) or names.is_about_text(words_of(key)):
            continue
        counts = values_of(sample.records, key)
        if 2 <= len(counts) <= 3 and all(isinstance(v, bool) or names.as_number(v) is not None for _, v in counts):
            found.append(Order("label", (key,), certain=False, values=counts))
    return found


def _winner_columns(sample: Sample, keys: Sequence[str]) -> list[Order]:
    """0/1 fields of which one is set: winner_model_a, winner_model_b, winner_tie."""
    found = []
    for group in names.groups_of(keys):
        if len(group.fields) != 2 or not names.says_winner(group.words):
            continue
        won = group.fields if names.are_in_order(sample.answers.ends) else group.fields[::-1]
        tie = names.tie_beside(group, keys)
        fields = won if tie is None else (*won, tie)
        cells = [as_text(get(record, name)) for record in sample.records for name in fields if name in record]
        if cells and set(cells) <= {"0", "1", "true", "false"}:
            found.append(Order("label", fields, Labels.of_flags(fields)))
    return found


# Scores and ranks


def _scores(sample: Sample, keys: Sequence[str]) -> list[Order]:
    """Scores and ranks of the responses: fields beside them, a list beside their list, or fields of its objects."""
    records = sample.records
    if not sample.answers.is_list:
        scores, measures = [], []
        for found, words in fields_beside(keys, sample.answers.fields):
            if kind := names.kind_of_score(words):
                scores += [_order(kind, found)] if _may_be_scores(records, found, words) else []
            elif not names.is_about_text(words) and numbers_in([get(r, field) for r in records for field in found]):
                measures.append(_order("unclear", found))
        return scores + measures
    (name,) = sample.answers.fields
    lists = [listed for record in records if isinstance(listed := get(record, name), list)]
    inside = [one for listed in lists for one in listed if isinstance(one, dict)]
    own = dict.fromkeys(key for one in inside for key in one)
    held = [(f"{name}.{key}", key, [[one.get(key, MISSING) for one in inside]]) for key in own]
    held += [(key, key, [r[key] for r in records if isinstance(r.get(key), list)]) for key in keys]
    orders = [
        _order(kind, (field,))
        for field, key, values in held
        if (kind := names.kind_of_score(words_of(key))) and values and all(numbers_in(one) for one in values if one)
    ]
    usual = [order for order in orders if order.certain and names.leaf(order.fields[0]) in _FIRST_SCORES]
    if usual:
        first = min(usual, key=lambda order: _FIRST_SCORES.index(names.leaf(order.fields[0])))
        orders = [first, *(order for order in orders if not order.certain)]
    return orders


def _order(kind: str, fields: tuple[str, ...]) -> Order:
    """Scores by what their names say of them, as `names.kind_of_score` puts it."""
    return Order("rank" if kind == "rank" else "scores", fields, certain=kind == "higher")


def fields_beside(keys: Iterable[str], fields: Sequence[str]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
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


def checking_scores(sample: Sample) -> tuple[str, ...]:
    """Scores beside named sides, which must not contradict them: score_chosen, rejected_rating, metadata.chosen_score.

    They stand beside the sides or one object deeper (also `scores.chosen`), named after the sides or by the usual
    names of sides.
    """
    for fields in (sample.answers.fields, ("chosen", "rejected")):
        for found, words in fields_beside((key for key in sample.keys if key not in fields), fields):
            if names.kind_of_score(words) == "higher" and _may_be_scores(sample.records, found, words):
                return found
    return ()


def _may_be_scores(records: Records, fields: Sequence[str], words: Sequence[str]) -> bool:
    """Whether fields of such names hold scores: numbers, or what a field that is just called score holds instead."""
    values = [get(record, name) for record in records for name in fields]
    if any(isinstance(value, list | dict) for value in values):
        return False
    return numbers_in(values) or names.is_just_a_score(words)
