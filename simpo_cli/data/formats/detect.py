"""Which fields a file uses, decided once from its first records; a file that can be read in two ways is refused."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from simpo_cli.data.formats import names, refusals
from simpo_cli.data.formats.direction import direction_of
from simpo_cli.data.formats.known import Known, known_layout
from simpo_cli.data.formats.layout import Layout, Stated, unused_fields
from simpo_cli.data.formats.names import MISSING, Record, Records, folded, get, is_turn, leaf, word_set, words_of
from simpo_cli.data.formats.orders import Answers, Sample
from simpo_cli.data.messages import is_transcript, is_transcript_prompt
from simpo_cli.data.pair import RecordError
from simpo_cli.errors import UserError

SAMPLE_RECORDS = 100
"""Records that the decision on a file's layout is made from."""

_NAMED = (
    ("chosen", "rejected"),
    ("chosen_messages", "rejected_messages"),
    ("preferred_output", "non_preferred_output"),
    ("chosen_response", "rejected_response"),
)
_NAMES_OF_SIDES = frozenset(folded(field) for pair in _NAMED for field in pair)
_LISTS = word_set("responses completions output outputs answers generations candidates replies summaries")
_TEXT_KEYS = ("response", "text", "content", "output", "completion", "answer", "generation")
_SYSTEMS = ("system", "system_prompt", "system_message")
_TOOLS = ("tools", "input.tools")
_SIDES = frozenset({"chosen", "rejected"})
_SAYS_ORDER = frozenset({"label", "scores", "rank"})
_ORDERING = _SIDES | _SAYS_ORDER | {"answers", "best"}

Columns = Mapping[Any, str | list[str]]


def detect(
    records: Records, columns: Columns, name: str, labels: Mapping[Any, Any] | None = None, direction: str | None = None
) -> Layout:
    """Decide which fields a file uses, and what says which response is preferred.

    Args:
        records: its first records, at least one.
        columns, labels, direction: what the person says of them; what is left out goes by the names that are known.
        name: the file, for messages.

    Raises:
        UserError: the file holds no pairs, or its fields can be read in two ways.
    """
    stated = Stated(columns, labels or {}, direction)
    known = known_layout(records)
    if known is not None and _has_named_sides(records) and _NAMES_OF_SIDES.isdisjoint(map(folded, known.needs)):
        known = None  # chosen and rejected themselves are read, whatever else such files hold
    if known is not None and known.refused and not columns:
        raise UserError(known.refused, known.fix, where=name)
    rewritten = records if known is None or known.rewrite is None else _rewritten(records, known, name)
    if known is None or known.refused or _is_about(records, rewritten, columns):
        layout = _layout(records, stated, name)
        return replace(layout, unused=tuple(unused_fields(records, layout)))
    layout = _layout(rewritten, _over_known(known, stated), name)
    says_order = _ORDERING.isdisjoint(columns) and direction is None
    return replace(
        layout,
        name=known.name,
        said=known.said if says_order else "",
        rewrite=known.rewrite,
        unused=tuple(unused_fields(rewritten, layout)),
    )


def _has_named_sides(records: Records) -> bool:
    """Whether most records have chosen and rejected themselves."""
    return 2 * sum(any(a in record and b in record for a, b in _NAMED) for record in records) > len(records)


def _over_known(known: Known, stated: Stated) -> Stated:
    """What a known layout says, with what the person says over it."""
    known = _as_listed(known, stated.columns)
    named = stated.columns.keys()
    if (_SIDES | _SAYS_ORDER) & named or stated.direction is not None:
        dropped = _SAYS_ORDER | {"best"} | ({"answers"} if _SIDES & named else set())
    else:
        dropped = _SIDES if "answers" in named else frozenset()
    columns = {part: field for part, field in known.columns.items() if part not in dropped} | dict(stated.columns)
    same_label = columns.get("label") is not None and columns.get("label") == known.columns.get("label")
    return Stated(
        columns,
        stated.labels or (known.labels if same_label else {}),
        stated.direction or (known.direction if _ORDERING.isdisjoint(named) else None),
        by_person=frozenset(named) | ({"direction"} if stated.direction else frozenset()),
    )


def _as_listed(known: Known, columns: Mapping[str, str | Sequence[str]]) -> Known:
    """What a known layout says of two responses that the person names in another order."""
    listed = columns.get("answers", [columns.get(part) for part in ("chosen", "rejected")])
    if isinstance(listed, str) or [*reversed(listed)] != known.columns.get("answers"):
        return known
    turned = {
        part: [*field[1::-1], *field[2:]] if isinstance(field, list) and part != "answers" else field
        for part, field in known.columns.items()
    }
    other = {"first": "second", "second": "first"}
    return replace(known, columns=turned, labels={other.get(side, side): meant for side, meant in known.labels.items()})


def _is_about(records: Records, rewritten: Records, columns: Columns) -> bool:
    """Whether a mapping names fields that the records have only as they stand in the file."""

    def has(records: Records, field: str) -> bool:
        return any(get(record, field) is not MISSING for record in records)

    named = [field for fields in columns.values() for field in ([fields] if isinstance(fields, str) else fields)]
    return records is not rewritten and any(not has(rewritten, field) and has(records, field) for field in named)


def _rewritten(records: Records, known: Known, name: str) -> Records:
    """What the records of the sample become, malformed ones left out unless all of them are."""
    assert known.rewrite is not None
    found: list[Mapping[str, Any]] = []
    problems = []
    for record in records:
        try:
            found += known.rewrite(record)
        except RecordError as error:
            problems.append(error)
    if problems and not found:
        raise UserError(f"holds no usable record ({known.name}): {problems[0].problem}.", problems[0].fix, where=name)
    return found


def _layout(records: Records, stated: Stated, name: str) -> Layout:
    refusals.require_fields(records, stated, name)
    answers = _stated_answers(records, stated, name) or _found_answers(records, name)
    if answers is None:
        if not stated.columns:
            refusals.require_better(records, name)
            if (near := _incomplete(records)) is not None:
                return near
        raise refusals.no_pairs(records[0], name)
    refusals.require_no_response(answers.fields, stated, name)
    holders = [r for r in records if all(get(r, field) is not MISSING for field in answers.fields)] or records
    prompt, below = _find_prompt(holders, answers, stated, name)
    order = direction_of(Sample(holders, name, stated, answers, prompt))
    side = _first_side(holders[0], answers)
    layout = Layout(
        responses=answers.fields,
        text=answers.text,
        prompt=prompt,
        prompt_more=below,
        system=stated.field("system") or _first_filled(holders, _SYSTEMS),
        history=stated.field("history") or "history",
        tools=stated.field("tools") or _first_filled(holders, _TOOLS),
        conversational=_is_conversational(side, None if prompt is None else get(holders[0], prompt), prompt),
        several=_most_responses(holders, answers) > 2,
        **order,
    )
    if prompt is None and isinstance(side, str) and not layout.conversational and not layout.refers:
        refusals.require_prompt(records, layout, stated, name)
    return layout


def _first_filled(records: Records, fields: Sequence[str]) -> str:
    """The first of the fields that holds something in some record; the first of all where none does."""
    return next((f for f in fields if any(get(r, f) not in (MISSING, None, "", []) for r in records)), fields[0])


def _is_conversational(side: Any, asked: Any, prompt: str | None) -> bool:
    """Whether a record has turns, in its first response or in its prompt."""
    if isinstance(side, list | dict) or isinstance(asked, list | dict):
        return True
    text = side if prompt is None else asked
    return isinstance(text, str) and (is_transcript if prompt is None else is_transcript_prompt)(text)


def _first_side(record: Record, answers: Answers) -> Any:
    """The first response of a record; MISSING where it has none."""
    side = get(record, answers.fields[0])
    if answers.is_list:
        side = side[0] if isinstance(side, list) and side else MISSING
        side = get(side, answers.text) if answers.text and isinstance(side, dict) else side
    return side


def _most_responses(records: Records, answers: Answers) -> int:
    """How many responses a record has at most."""
    if not answers.is_list:
        return len(answers.fields)
    lists = [get(record, answers.fields[0]) for record in records]
    return max((len(one) for one in lists if isinstance(one, list)), default=0)


# The responses


def _stated_answers(records: Records, stated: Stated, name: str) -> Answers | None:
    """The responses that the mapping names, or None."""
    named = [part for part in ("chosen", "rejected") if part in stated.columns]
    listed = stated.columns.get("answers")
    if named and listed is not None:
        raise UserError(
            f"columns names both answers and {named[0]}.",
            "Keep answers where a label or scores say which is better, or chosen and rejected where they are named so.",
            where=name,
        )
    if named:
        missing = [p for p in ("chosen", "rejected") if p not in named and not any(p in r for r in records)]
        if missing:
            problem = f"columns does not say what {missing[0]} is."
            fix = f"Add {missing[0]}: FIELD. The fields are {', '.join(list(records[0])[:20])}."
            raise UserError(problem, fix, where=name)
        fields = (stated.field("chosen") or "chosen", stated.field("rejected") or "rejected")
        return Answers(fields, _ends_of(fields))
    if listed is None:
        return None
    if not isinstance(listed, str):
        return Answers(tuple(listed), _ends_of(listed))
    keys = listed.split(".")
    for record in records:
        for count in range(len(keys), 0, -1):
            field, text = ".".join(keys[:count]), ".".join(keys[count:])
            if isinstance(value := get(record, field), list):
                return Answers((field,), text=text or _text_key(value))
    problem = f"columns says that answers is {listed!r}, and that is no list in any record."
    fix = "Name a field with a list of responses, or the two fields: answers: [FIELD, FIELD]."
    raise UserError(problem, fix, where=name)


def _ends_of(fields: Sequence[str]) -> tuple[str, ...]:
    """What tells the names of the responses apart, in their order: ("b", "a") for [response_b, response_a]."""
    leaves = [leaf(field) for field in fields]
    for group in names.groups_of(leaves):
        end_of = dict(zip(group.fields, group.ends, strict=True))
        if all(field in end_of for field in leaves):
            return tuple(end_of[field] for field in leaves)
    return ()


def _found_answers(records: Records, name: str) -> Answers | None:
    """The responses that the names of the fields speak for in most records."""
    votes = Counter(found for record in records if (found := _answers_in(record, name)) is not None)
    return votes.most_common(1)[0][0] if votes else None


def _answers_in(record: Record, name: str) -> Answers | None:
    sides = [pair for pair in _NAMED if pair[0] in record and pair[1] in record]
    if not sides:
        sides = names.named_sides(record)
        sides = [pair for pair in sides if all(isinstance(record[field], str | list | dict) for field in pair)]
        usual = [key for key in record if folded(key) in _NAMES_OF_SIDES]
        if len(usual) > 1 or not all(key in pair for key in usual for pair in sides):
            sides = []  # chosen or rejected themselves are there, and their counterpart is missing or misspelt
    if len(sides) > 1:
        raise refusals.two_pairs_of_sides(record, sides, name)
    if sides:
        return Answers(sides[0], named=True)
    if refusals.is_stepwise(record):
        return None
    found = [Answers(group.fields, group.ends) for group in names.responses_in(record)]
    found = found or [Answers((key,), text=_text_key(value)) for key, value in record.items() if _lists(key, value)]
    if len(found) > 1:
        raise refusals.several_answers(record, found, name)
    return found[0] if found else None


def _lists(key: str, value: Any) -> bool:
    """Whether a field is a list of responses by its name."""
    if key.rpartition("_")[2].lower() not in _LISTS or "raw" in words_of(key) or not isinstance(value, list):
        return False
    return len(value) >= 2 and all(isinstance(one, str | list | dict) for one in value)


def _text_key(responses: Sequence[Any]) -> str:
    """Where the text of each object of a list stands; empty where they are texts or messages themselves."""
    if not responses or not all(isinstance(one, dict) for one in responses) or all(map(is_turn, responses)):
        return ""
    return next((key for key in _TEXT_KEYS if all(key in one for one in responses)), "")


def _incomplete(records: Records) -> Layout | None:
    """The layout that was meant where no record is whole: a field is missing or misspelt in all of them."""
    for record in records:
        keys = {folded(key) for key in record}
        for chosen, rejected in _NAMED:
            if keys & {folded(chosen), folded(rejected)}:
                side = record.get(chosen, record.get(rejected))
                implicit = isinstance(side, list) or (isinstance(side, str) and is_transcript(side))
                alone = chosen.endswith(("messages", "output")) or (implicit and "prompt" not in record)
                prompt = None if alone else names.prompt_in(record).get("prompt", "prompt")
                return Layout(responses=(chosen, rejected), prompt=prompt, conversational=implicit)
    return None


# The prompt


def _find_prompt(records: Records, answers: Answers, stated: Stated, name: str) -> tuple[str | None, str | None]:
    """The prompt's field, None where the sides hold it, and the field that continues it."""
    below = stated.field("input")
    if (prompt := stated.field("prompt")) is not None:
        return prompt, below
    votes = Counter(_prompt_of(record, answers, name) for record in records)
    prompt, found = votes.most_common(1)[0][0]
    return prompt, below or found


def _prompt_of(record: Record, answers: Answers, name: str) -> tuple[str | None, str | None]:
    side = None if answers.is_list else get(record, answers.fields[0])
    whole = isinstance(side, list) and len(side) > 1  # a whole conversation, its prompt included
    if "prompt" in record:
        # UltraFeedback's lists repeat the prompt: then the turns say more than the text
        return (None if whole and isinstance(record["prompt"], str) else "prompt"), None
    if whole:
        return None, None
    found = [field for field in names.prompt_fields(record) if field not in answers.fields]
    below = None
    if found[:1] == ["instruction"]:
        found = [field for field in found if field != "input"]
        below = "input"
    if len(found) > 1:
        raise refusals.several_prompts(found, answers.fields, name)
    return (found[0] if found else None), below
