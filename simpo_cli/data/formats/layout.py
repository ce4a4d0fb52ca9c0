"""Which field plays which part in a file: as the person says it, and as the decision that can be read.

Also what the values of a label mean, and which fields play no part, so that none vanishes without a word.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from simpo_cli.data.formats.names import (
    SPEAKERS,
    TIES,
    Record,
    Records,
    are_in_order,
    as_number,
    as_text,
    end_named,
    is_empty,
    is_turn,
    leaf,
    may_be_label,
    shown_value,
    word_set,
    words_of,
)

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
    label: str, values: Iterable[Any], fields: Sequence[str], ends: tuple[str, ...], *, stated: bool
) -> tuple[Labels, list[Any]]:
    """What the values of a label mean by the names of the label and of the two responses.

    Args:
        label: the label's field.
        values: all values that it has in the sample, null left out.
        fields: the fields of the two responses; empty where they are entries of a list.
        ends: what tells the names of the two apart, such as ("a", "b") or ("1", "2"); empty where nothing usual does.
        stated: the person has named the label: then one value is enough, and 1 and 2 follow the order of the fields.

    Returns:
        The meanings that are certain, and the values whose meaning is not. If the first has none that orders a pair,
        all values are of the second kind.
    """
    distinct = [value for _, value in dict.fromkeys((type(value), value) for value in values)]
    counted = are_in_order(ends)  # else it is not certain what left, first and 0 mean
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
        words = [fields, [end for end in ends if not end.isdigit()]]
        words += [*_FIRST_AND_SECOND, ("model_a", "model_b")] if counted else []
        usual = [(word, side) for pair in words for word, side in zip(pair, SIDES, strict=False)]
    usual += [(word, "tie") for word in ("tie", "draw", "equal", "both", "neither")]
    return Labels((*meanings, *((value, side) for value, side in usual if as_text(value) not in seen))), unclear


def _by_name(value: Any, fields: Sequence[str], ends: tuple[str, ...]) -> Side | None:
    """The response that a text names: by its field, its letter, or its letter or number behind a word for responses."""
    if not isinstance(value, str):
        return None
    named = [side for field, side in zip(fields, SIDES, strict=False) if as_text(value) == as_text(field)]
    end = end_named(value, ends)
    if named or end is None or (end.isdigit() and words_of(value) == (end,)):
        return next(iter(named), None)
    return SIDES[ends.index(end)]


def _by_number(label: str, values: Sequence[Any], ends: tuple[str, ...], stated: bool) -> dict[str, Side]:
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


# Which field plays which part

Rewrite = Callable[[Record], Records]


@dataclass(frozen=True)
class Stated:
    """A mapping, by the person or by a known layout: `columns`, `labels` and `direction` of a source.

    Attributes:
        columns: which field plays which part.
        labels: what the values of the label mean.
        direction: `first` if the first response is the better one.
        by_person: the parts that the person named; None if all of them are.
    """

    columns: Mapping[str, str | Sequence[str]]
    labels: Mapping[str, Any]
    direction: str | None = None
    by_person: frozenset[str] | None = None

    def is_own(self, part: str) -> bool:
        """Whether the person named a part."""
        return self.by_person is None or part in self.by_person

    @property
    def own(self) -> list[str]:
        """The parts of `columns` that the person named."""
        return list(filter(self.is_own, self.columns))

    def field(self, part: str) -> str | None:
        """The one field that plays a part, or None."""
        return next(iter(self.fields(part)), None)

    def fields(self, part: str) -> tuple[str, ...]:
        """All fields that play a part."""
        fields = self.columns.get(part, ())
        return (fields,) if isinstance(fields, str) else tuple(fields)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which field plays which part in a file. A name with dots reaches into objects and lists.

    Attributes:
        responses: the fields of the responses, the preferred one in front if `order` is `names`; one field where it
            holds a list of them.
        prompt: the prompt's field, or None where it is the beginning that the two sides share.
        order: what says which response is preferred: the fields' names (or the person), a label, or scores.
        several: more than two responses stand in some record: then the best one and the worst one make its pair.
        text: where the text stands in each object of a list of responses; empty where it is the entry itself.
        refers: pairs (value, field) where chosen and rejected hold names of other fields.
        label: the label's field, or several 0/1 fields of which one is set: the label is then that field's name.
        labels: what the values of the label mean.
        named_by: fields beside the responses, such as model_a and model_b, whose values the label repeats: it then
            stands for the field's name.
        scores: the fields of the scores, one for each response, or one that is a list or stands in each object. With
            another `order` they are only compared with it.
        lowest: whether the lowest score is the best one, as of ranks.
        prompt_more: a field whose text belongs behind the prompt (`input` beside `instruction`).
        system, history, tools: fields of the system text, of the turns before the prompt, and of the tools.
        rewrite: turns a record into those that the other attributes are about, where the layout asks for it.
        name: the known layout that this is, for people to read.
        said: what a known layout says of the order, in words.
        remarks: what else is worth saying of the decision.
        unused: fields that are neither used nor plain metadata.
        conversational: the records have turns; otherwise plain text. This is for people to read and decides nothing.
    """

    responses: tuple[str, ...]
    prompt: str | None
    order: Literal["names", "label", "scores"] = "names"
    several: bool = False
    text: str = ""
    refers: tuple[tuple[str, str], ...] = ()
    label: tuple[str, ...] = ()
    labels: Labels | None = None
    named_by: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    lowest: bool = False
    prompt_more: str | None = None
    system: str = "system"
    history: str = "history"
    tools: str = "tools"
    rewrite: Rewrite | None = None
    name: str = ""
    said: str = ""
    remarks: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    conversational: bool = False

    def rewritten(self, record: Record) -> Records:
        """The records that the layout is about: the record itself, or what the layout makes of it.

        Raises:
            RecordError: the record is malformed.
        """
        return (record,) if self.rewrite is None else self.rewrite(record)

    @property
    def is_list(self) -> bool:
        """Whether the responses are the entries of one list."""
        return len(self.responses) == 1

    @property
    def chosen(self) -> str:
        """The field of the first response, or of the list of them."""
        return self.responses[0]

    @property
    def rejected(self) -> str:
        """The field of the second response, or of the list of them."""
        return self.responses[:2][-1]

    def described(self) -> str:
        """The decision in words, such as `conversational, implicit prompt`."""
        known = f"{self.name}: " if self.name else ""
        return f"{known}{self.form}" + (f", {self.direction}" if self.direction else "")

    @property
    def form(self) -> str:
        """The form of the records and the place of the prompt, in words."""
        form = "conversational" if self.conversational else "plain text"
        if self.prompt is None:
            return f"{form}, implicit prompt"
        fields = [self.prompt] if self.prompt != "prompt" else []
        fields += [self.prompt_more] if self.prompt_more else []
        return f"{form}, explicit prompt" + (f" ({' + '.join(fields)})" if fields else "")

    @property
    def direction(self) -> str:
        """What says which response is preferred, in words; empty where the usual names do."""
        if self.said:
            return self.said
        scores = " / ".join(self.scores)
        if self.order == "label":
            two = f"two {self.chosen}" if self.is_list else f"{self.chosen} and {self.rejected}"
            return f"{' / '.join(self.label)} says which of {two} is preferred"
        if self.order == "scores" and self.several:
            best, worst = ("lowest", "highest") if self.lowest else ("highest", "lowest")
            return f"of {', '.join(self.responses)} the one with the {best} {scores} over the one with the {worst}"
        if self.order == "scores":
            better = f"lower {scores}" if self.lowest else "higher score"
            return f"the {better} of {'two ' if self.is_list else ''}{' and '.join(self.responses)} is preferred"
        if self.refers:
            return f"{self.chosen} and {self.rejected} name the fields of the responses"
        if self.is_list:
            return f"the first of {self.chosen} over the last"
        return "" if (self.chosen, self.rejected) == ("chosen", "rejected") else f"{self.chosen} over {self.rejected}"

    @property
    def response(self) -> str:
        """What the response is, in words."""
        return "last assistant turn" if self.conversational and self.prompt is None else "the whole answer"


# Fields that play no part

_METADATA = word_set(
    "id ids idx index uid uuid hash source sources origin url urls link links dataset subset split date time "
    "timestamp created updated modified version language languages lang locale license author authors annotator "
    "annotators worker user userid model models tag tags category categories domain topic score scores rating "
    "ratings reward rewards rank ranks tokens token length len num count turns turn round fold part meta metadata "
    "margin logprob logps logprobs seed name names at by of the in chosen rejected unnamed level"
)
"""Names of these words alone say where a record comes from or how it was measured, not what was asked or answered."""
_LAST = word_set("id ids idx index uid uuid hash url urls link timestamp score scores rating rank length tokens model")
"""A name that ends with one of these says so whatever stands before it."""
_MEDIA = word_set("image images video videos audio audios")
_PARTS = frozenset({"system", "system_prompt", "system_message", "history", "tools", "context"})
_TURNS = frozenset({"turn", "turns"})  # their number is metadata, they themselves are not
_LONGEST_METADATA = 80  # characters; a longer text of words was written to be read
_FEWEST_WORDS = 8
_MOST_FOUND = 50  # in records whose keys are data themselves there is no end of them
_WHOLE = ("messages", "conversations")  # the conversation beside the text of its last question
_PLACE = re.compile(r"\.\d+(?=\.|$)")  # in a list: what stands beside it is named without its place


class UnusedFields:
    """Fields that are neither used nor plain metadata, in the order of the file, as keys of `found`.

    Empty ones and copies of the prompt or of a response are left out.
    """

    def __init__(self, layout: Layout) -> None:
        used = {layout.prompt, layout.prompt_more, layout.system, layout.tools, *layout.label, *layout.scores}
        if layout.text:
            used.add(f"{layout.chosen}.{layout.text}")
        else:
            used.update(layout.responses)
        used |= {field for _, field in layout.refers} | {*layout.named_by, "chat_template_kwargs"}
        # without a prompt of its own it must be in the turns of the two sides
        used |= {"prompt"} if layout.prompt is None else {layout.history, *_WHOLE}
        # what repeats the prompt or a response is a copy of it
        self._copied = (layout.prompt or "prompt", *(() if layout.is_list else layout.responses))
        self._used = [without_places(field) for field in used if field]
        self._done = {*self._used}
        self._metadata: set[str] = set()  # for speed: a short value of these says nothing
        self.found: dict[str, None] = {}

    def look(self, record: Record) -> None:
        """Add those of one more record."""
        for key, value in record.items():
            if key in self._done or (key in self._metadata and _is_short(value)):
                continue
            if len(self.found) >= _MOST_FOUND:
                return
            if any(value == record.get(field) for field in self._copied):
                continue
            self.found.update(dict.fromkeys(_unused_in(key, value, self._used)))
            if key in self.found:
                self._done.add(key)
            elif is_metadata(key) and not any(field.startswith(f"{key}.") for field in self._used):
                self._metadata.add(key)


def unused_fields(records: Records, layout: Layout) -> list[str]:
    """The unused fields of some records."""
    unused = UnusedFields(layout)
    for record in records:
        unused.look(record)
    return list(unused.found)


def _unused_in(name: str, value: Any, used: Sequence[str]) -> Iterator[str]:
    below = [field for field in used if field.startswith(f"{name}.")]
    if name in used or is_empty(value) or value in ([], {}):
        return
    if below:
        for one in value if isinstance(value, list) else [value]:
            for key, inner in one.items() if isinstance(one, dict) else ():
                yield from _unused_in(f"{name}.{key}", inner, below)
    elif not is_metadata(name):
        yield name
    elif isinstance(value, dict):  # what is asked in all the same, under a name of metadata
        asked = [key for key in value if key in _PARTS and not is_empty(value[key]) and value[key] != []]
        yield from (f"{name}.{key}" for key in asked)
    elif isinstance(value, list):
        if name.lower() in _TURNS or is_turn(value[0]):
            yield name
    elif not _is_short(value) and len(str(value).split()) >= _FEWEST_WORDS:
        yield name


def _is_short(value: Any) -> bool:
    return len(value) <= _LONGEST_METADATA if isinstance(value, str) else not isinstance(value, list | dict)


def without_places(name: str) -> str:
    """The name of what stands in a list, whatever its place: votes.by for votes.0.by."""
    return _PLACE.sub("", name)


@lru_cache(maxsize=4096)
def is_metadata(name: str) -> bool:
    """Whether a field says where its record comes from or how it was measured; what may be a label never does."""
    words = [word for word in words_of(leaf(name)) if not word.isdigit()]
    if not words:
        return True  # the index that pandas writes
    if not _MEDIA.isdisjoint(words):
        return False
    return not may_be_label(name) and (words[-1] in _LAST or _METADATA.issuperset(words))
