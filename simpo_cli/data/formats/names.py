"""The fields of a record: how one is found, how values are compared and shown, and what its name says of it.

By their names fields are responses, and what tells those apart; scores, ranks and labels; or merely metadata.
"""

import difflib
import functools
import json
import math
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simpo_cli.data.json_records import whole_value
from simpo_cli.data.pair import RecordError

Record = Mapping[str, Any]
Records = Sequence[Record]

MISSING: Any = object()
"""What a record gives for a field that it does not have; null is a value."""
SKIP = "Mend the record, or set data.on_bad_record: skip to leave such records out and count them."


def get(record: Record, field: str) -> Any:
    """The value of a field; `metadata.score`, `notes.0.value` reach inside unless a field has that very name.

    In a list, -1 is the last place."""
    value: Any = record.get(field, MISSING)
    if value is not MISSING or "." not in field:
        return value
    value = record
    for key in field.split("."):
        if isinstance(value, list) and (key.isdecimal() or key == "-1") and int(key) < len(value) != 0:
            value = value[int(key)]
        elif isinstance(value, dict) and key in value:
            value = value[key]
        else:
            return MISSING
    return value


def required(record: Record, field: str) -> Any:
    value = get(record, field)
    if value is MISSING:
        near = nearest(field, record)
        hint = f"Did you mean {field} where it says {near}? " if near else ""
        raise RecordError(f"{field} is missing", hint + SKIP)
    if value is None:
        raise RecordError(f"{field}: expected text or messages, got null", SKIP)
    return value


def from_json(text: str, field: str) -> Any:
    """What a field holds as JSON text; a RecordError where it is not JSON."""
    try:
        return whole_value(text)
    except json.JSONDecodeError:
        raise RecordError(f"{field}: the text is not JSON", SKIP) from None
    except RecordError as error:
        raise RecordError(f"{field}: {error.problem}", SKIP) from None


def nearest(field: str, record: Record) -> str | None:
    """The field of a record whose name is most like this one."""
    near = [key for key in record if folded(key) == folded(field)]
    return next(iter(near or difflib.get_close_matches(field, record, n=1, cutoff=0.8)), None)


# Names


def folded(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "").replace(" ", "")


def leaf(field: str) -> str:
    """The last step of a name with dots."""
    return field.rpartition(".")[2]


@functools.lru_cache(maxsize=4096)
def words_of(name: str) -> tuple[str, ...]:
    """The words of a name: `responseA_score1` is response, a, score, 1."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+", name))


def word_set(words: str) -> frozenset[str]:
    """The words of a text, for tables of names."""
    return frozenset(words.split())


def column_of(fields: Sequence[str]) -> str | list[str]:
    """Fields as `columns` writes them."""
    return fields[0] if len(fields) == 1 else list(fields)


# Values


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, an empty text or a NaN."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def is_turn(value: Any) -> bool:
    """Whether a value is one turn of a conversation, going by its keys."""
    return isinstance(value, dict) and ("role" in value or "from" in value)


def as_text(value: Any) -> str:
    """A value as text to compare: 1, 1.0, "1" and "1.0" are one, as are true and "True", A and a."""
    return re.sub(r"(?<=^\d)\.0+$", "", str(value).strip().casefold())


def as_number(value: Any) -> float | None:
    """A finite number, also one that is written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | numbers.Number):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (ValueError, OverflowError, TypeError):
        return None
    return number if math.isfinite(number) else None


def numbers_in(values: Sequence[Any]) -> bool:
    """Whether some of the values are numbers, and all of them numbers or nothing."""
    held = [value for value in values if value is not MISSING and not is_empty(value)]
    return bool(held) and all(as_number(value) is not None for value in held)


def shown_value(value: Any) -> str:
    """A value as messages show it."""
    if isinstance(value, bool):
        return str(value).lower()
    text = "null" if value is None else str(value)
    return text if len(text) <= 30 else text[:30] + "..."


# What names say

_FAMILIES = (
    tuple(str(number) for number in range(16)),
    tuple("abcdefghij"),
    ("left", "right"),
    ("first", "second", "third", "fourth"),
    ("one", "two", "three", "four"),
)
_RESPONSES = word_set(
    "response resp output completion answer generation candidate reply continuation summary conversation conv "
    "conversations dialogue messages text assistant result"
)
SPEAKERS = _RESPONSES | {"model", "option", "system"}
"""Words for one of two responses in the values of a label: response_a, Model B, Option 1."""
_PROMPTS = {
    "conversations": list,
    "instruction": str,
    "question": str,
    "query": str,
    "input": str,
    "input.messages": list,
    "messages": list,
}
_PLURALS = frozenset(f"{word}s" for word in _RESPONSES)
_ABOUT_RESPONSES = word_set(
    "name id score scores rating ratings reward rewards rank ranking tokens token length len safe safety "
    "source language reason rationale critique explanation comment quotes category type metadata date time url "
    "author label winner feedback annotation annotations prompt question instruction"
)
_HIGHER_IS_BETTER = word_set("score scores rating ratings reward rewards")
_QUALITIES = word_set(
    "overall quality general helpful helpfulness correct correctness accurate accuracy coherent coherence honest "
    "honesty truthful truthfulness faithful faithfulness factual factuality grounded groundedness relevant relevance "
    "useful usefulness clear clarity complete completeness informative informativeness creative creativity depth "
    "fluent fluency readability naturalness instruction following safety harmlessness alignment preference preferred "
    "human user expert annotator judge evaluator critic critique gpt claude llama qwen llm model rm pm prm orm ai "
    "armorm skywork deberta starling nemotron pairrm avg average mean median total final sum aggregate aggregated "
    "weighted normalized norm raw all individual fine grained good better best win eval evaluation vote meta metadata"
)
"""What a score may be of if it is better the higher it is; of anything else, such as bias, that is not certain."""
_LOWER_MAY_BE_BETTER = word_set(
    "loss losses toxicity toxic perplexity ppl error errors distance penalty nll harm harmfulness risk cost "
    "regret violation violations latency"
)
_COUNTS = word_set(
    "id ids idx index token tokens length len words word chars characters count num number time timestamp date seed "
    "year turn turns version temperature size"
)
_WHERE_FROM = word_set(
    "id ids uid uuid hash sha source dataset subset split lang language locale date time timestamp created updated url "
    "link license author user role category topic domain task type version turn turns prompt question instruction"
)
_PEOPLE = word_set("annotator annotators rater raters worker workers labeler labelers labeller judge reviewer voter")
_RANKS = word_set("rank ranks ranking rankings position place")
_LABELS = word_set(
    "label preference preferred prefers winner better best choice chosen choose selected selection cmp comparison "
    "pairwise verdict judgment judgement decision vote winning favored favorite safer"
)
_NOT_LABELS = word_set(
    "reason rationale statement comment explanation confidence language time date count annotator user text model "
    "elaboration category type source score rating reward name dataset"
)
_LOSERS = word_set("worse worst loser losing rejected dispreferred unpreferred")
_NEGATED = word_set(
    "non not bad wrong incorrect inverse least lower shorter inferior eliminated discarded disliked lost unsafe "
    "harmful toxic hallucination hallucinated"
)
_BESIDE_LABEL = word_set(
    "id idx index a b is the which one of by in my our final overall global gold golden majority consensus human gpt "
    "claude llama llm ai judge expert annotation annotator user rater grader worker label value pair ref orig side "
    "team ground truth true crowd rm eval evaluation quality helpful helpfulness safety most more"
)
"""What may stand beside winner or choice in the name of a label whose value is certain to be the better response."""
_WINS = word_set("winner win wins won better best preferred chosen selected")
TIES = word_set(
    "tie tied draw equal equally same both neither none bothbad bothgood allbad similar nopreference nodifference "
    "equallygood equallybad tiebothbad tiebothgood bothequal"
)

_NAMED_SIDES = (
    ("chosen", "rejected"),
    ("preferred", "dispreferred"),
    ("preferred", "rejected"),
    ("accepted", "rejected"),
    ("winner", "loser"),
    ("winning", "losing"),
    ("better", "worse"),
    ("good", "bad"),
)
_WORSE = frozenset({"rejected", "dispreferred"})
GUESSED_SIDES = (("pos", "neg"), ("positive", "negative"), ("win", "lose"))
"""Names that say a direction in some files and something else in others: they are put into a hint, never read."""


@dataclass(frozen=True)
class Group:
    """Fields whose names differ in one word only, such as `response_a` and `response_b`.

    Attributes:
        words: the words that they share.
        ends: what tells them apart, in order: a, b.
        fields: their names in the same order.
    """

    words: tuple[str, ...]
    ends: tuple[str, ...]
    fields: tuple[str, ...]


def groups_of(keys: Iterable[str]) -> list[Group]:
    """All groups among the names: numbered from 0 or 1, lettered from a, left and right, first and second."""
    found: dict[tuple[int, tuple[str, ...], int], dict[str, str]] = {}
    for key in keys:
        words = words_of(key)
        for family, ends in enumerate(_FAMILIES):
            places = [place for place, word in enumerate(words) if word in ends]
            if len(places) == 1:
                shared = words[: places[0]] + words[places[0] + 1 :]
                found.setdefault((family, shared, places[0]), {}).setdefault(words[places[0]], key)
    groups = []
    for (family, shared, _), by_end in found.items():
        ends = _FAMILIES[family]
        start = 1 if ends[0] == "0" and "0" not in by_end else 0
        run = ends[start : start + len(by_end)]
        if len(by_end) >= 2 and all(end in by_end for end in run):
            groups.append(Group(shared, run, tuple(by_end[end] for end in run)))
    return groups


def responses_in(record: Record) -> list[Group]:
    """Groups of fields that hold responses whose names say no order, the likeliest first."""
    groups = [g for g in groups_of(record) if all(isinstance(record[field], str | list | dict) for field in g.fields)]
    named = [g for g in groups if not _RESPONSES.isdisjoint(g.words) and _ABOUT_RESPONSES.isdisjoint(g.words)]
    if named:
        fewest = min(len(group.words) for group in named)
        return [group for group in named if len(group.words) == fewest]
    return [g for g in groups if g.words in ((), ("model",)) and g.ends[0] in ("a", "left") and len(g.ends) == 2]


def named_sides(keys: Iterable[str], pairs: Iterable[tuple[str, str]] = _NAMED_SIDES) -> list[tuple[str, str]]:
    """Fields of a better and a worse response by their names, such as `preferred_response`, `dispreferred_response`."""
    spelled = {words_of(key): key for key in keys}
    found = []
    for better, worse in pairs:
        for words, key in spelled.items():
            if words.count(better) != 1 or not set(words) - {better} <= _RESPONSES:
                continue
            place = words.index(better)
            others = ((worse,), ("non", better), ("not", better))
            found += [
                (key, spelled[against])
                for other in others
                if (against := words[:place] + other + words[place + 1 :]) in spelled
            ]
    return list(dict.fromkeys(found))


def prompt_fields(record: Record) -> list[str]:
    """The fields of a record that may be its prompt by their names, but `prompt` itself."""
    return [
        field
        for field, kind in _PROMPTS.items()
        if isinstance(value := get(record, field), kind)
        or (isinstance(value, list) and value and all(map(is_turn, value)))
    ]


def prompt_in(record: Record) -> dict[str, Any]:
    """The field that is a record's prompt by its name, as `columns` writes it; empty where there is none."""
    found = ["prompt"] if "prompt" in record else prompt_fields(record)
    return {"prompt": found[0]} if found else {}


def are_in_order(ends: Sequence[str]) -> bool:
    """Whether ends stand as they are counted: a before b, 1 before 2."""
    return list(ends) == sorted(ends, key=lambda end: (int(end) if end.isdigit() else 0, end))


def worse_alone(record: Record) -> tuple[str, str] | None:
    """The field that is the better response and the one that is named the worse, where only one can be the better."""
    held = {key: set(words_of(key)) for key, value in record.items() if isinstance(value, str | dict)}
    worse = [key for key, words in held.items() if words & _WORSE and words <= _WORSE | _RESPONSES]
    others = [key for key, words in held.items() if words and words <= _RESPONSES]
    return (others[0], worse[0]) if len(worse) == len(others) == 1 else None


def end_named(value: Any, ends: Sequence[str]) -> str | None:
    """The letter or number in a value that tells responses apart: A, "Response b", model_a; None for any other text."""
    words = words_of(str(value))
    return words[-1] if words and words[-1] in ends and words[:-1] in ((), *((one,) for one in SPEAKERS)) else None


def says_a_side(field: str) -> bool:
    """Whether a field's name says that it is the better or the worse response."""
    words = {word for pair in (*_NAMED_SIDES, *GUESSED_SIDES) for word in pair}
    return not words.isdisjoint(words_of(leaf(field)))


def kind_of_score(words: Iterable[str]) -> str:
    """What numbers under such a name say of a response: `higher`, `rank`, `unclear`, or nothing (empty)."""
    held = set(words)
    if held & _LOWER_MAY_BE_BETTER:
        return "unclear"
    if held & _RANKS:
        return "rank"
    if not held & _HIGHER_IS_BETTER:
        return ""
    of = {word for word in held if len(word) > 1 and not word.isdigit()} - _HIGHER_IS_BETTER
    return "higher" if of <= _RESPONSES | _PLURALS | _QUALITIES else "unclear"


def is_about_text(words: Iterable[str]) -> bool:
    """Whether numbers of this name count or number a response, or are the votes of one person: tokens, id, rater."""
    return not _COUNTS.isdisjoint(words) or _PEOPLE.issuperset(words)


def is_just_a_score(words: Iterable[str]) -> bool:
    """Whether a name says no more than that this is the score of a response."""
    return set(words) <= _HIGHER_IS_BETTER | _RANKS | _RESPONSES | {"metadata", "meta"}


def may_be_label(field: str) -> bool:
    """Whether a field of this name may say which response is the better one, or the worse one."""
    words = last_words(field)
    return bool(words & (_LABELS | _LOSERS)) and not words & _NOT_LABELS


def may_name_model(field: str) -> bool:
    """Whether a field of this name may say which model gave the better response: preferred_model, winner_name."""
    words = last_words(field)
    return bool(words & _LABELS) and bool(words & {"model", "name"})


def is_about_loser(field: str) -> bool:
    """Whether a label of this name may say which response is the worse one."""
    return not last_words(field).isdisjoint(_LOSERS | _NEGATED)


def says_which_is_better(words: Iterable[str]) -> bool:
    """Whether a label of this name says nothing but which response is better: not shown_first_choice, toxic_label."""
    said = {word for word in words if not word.isdigit()}
    return said <= _LABELS | _WINS | _RESPONSES | _PLURALS | _BESIDE_LABEL | {"model", "name"}


def last_words(field: str) -> set[str]:
    """The words of a name behind its last dot; places in lists are left out."""
    parts = [part for part in field.split(".") if not part.isdigit()]
    return set(words_of(parts[-1])) if parts else set()


def says_winner(words: Iterable[str]) -> bool:
    """Whether 0/1 fields of this name say which response won."""
    return not _WINS.isdisjoint(words) and says_which_is_better(words)


def says_only_where_from(field: str) -> bool:
    """Whether a name says no more than where a record comes from, so that it orders no responses."""
    return last_words(field) <= _WHERE_FROM


def tie_beside(group: Group, keys: Iterable[str]) -> str | None:
    """The 0/1 field of a tie beside `winner_model_a` and `winner_model_b`."""
    return next((key for key in keys if "".join(w for w in words_of(key) if w not in group.words) in TIES), None)
