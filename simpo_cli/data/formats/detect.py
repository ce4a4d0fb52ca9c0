"""Which fields a file uses, decided once from its first records; a file that can be read in two ways is refused."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from simpo_cli.data.formats.fields import MISSING, SCORE_NAMES, did_you_mean, folded, get
from simpo_cli.data.formats.layout import Layout
from simpo_cli.data.messages import is_transcript, is_transcript_prompt
from simpo_cli.errors import UserError

SAMPLE_RECORDS = 100
"""Records that the decision on a file's layout is made from."""

_RESPONSES = (
    ("chosen", "rejected"),
    ("chosen_messages", "rejected_messages"),
    ("preferred_output", "non_preferred_output"),
    ("chosen_response", "rejected_response"),
)
_PROMPTS = ("conversations", "instruction", "question", "query", "input", "input.messages", "messages")
_TWO = tuple(
    (name.format(a), name.format(b))
    for name in ("response_{}", "output_{}", "completion_{}", "answer_{}")
    for a, b in ((1, 2), (0, 1), ("a", "b"), ("A", "B"))
)
_LISTS = ("responses", "completions", "outputs", "answers")
PARTS = ("prompt", "chosen", "rejected", "label", "system", "tools", "score_chosen", "score_rejected")
"""What a column mapping may name."""


def detect(records: Sequence[Mapping[str, Any]], columns: Mapping[str, str], name: str) -> Layout:
    """Decide which fields a file uses.

    Args:
        records: its first records, at least one.
        columns: the person's own mapping from parts to fields; empty to go by the names that are known.
        name: the file, for messages.

    Raises:
        UserError: the file holds no pairs, or its fields can be read in two ways.
    """
    if columns:
        return _mapped(records, columns, name)
    votes = Counter(found for record in records if (found := _layout_of(record, name)) is not None)
    if votes:
        return votes.most_common(1)[0][0]
    if (near := _incomplete(records)) is not None:
        return near
    raise _no_pairs(records[0], name)


def _layout_of(record: Mapping[str, Any], name: str) -> Layout | None:
    """The layout that one record speaks for, or None."""
    sides = [pair for pair in _RESPONSES if pair[0] in record and pair[1] in record]
    if len(sides) > 1:
        raise UserError(
            f"holds both {' / '.join(sides[0])} and {' / '.join(sides[1])}.",
            _mapping_hint(name, record, sides[0], None),
            where=name,
        )
    if sides:
        chosen, rejected = sides[0]
        order, scores = "names", None
    elif (scored := _scored(record)) is not None:
        chosen, rejected, order, scores = scored
    else:
        return None
    side = None if order == "list" else record.get(chosen)
    prompt, more = _prompt_field(record, chosen, side, name)
    turns = isinstance(side, list | dict)
    transcripts = isinstance(side, str) and _has_transcripts(record, side, prompt)
    return Layout(
        chosen=chosen,
        rejected=rejected,
        prompt=prompt,
        order=order,
        scores=scores,
        prompt_more=more,
        conversational=turns or transcripts or (prompt is not None and isinstance(get(record, prompt), list)),
    )


def _has_transcripts(record: Mapping[str, Any], side: str, prompt: str | None) -> bool:
    if prompt is None:
        return is_transcript(side)
    value = get(record, prompt)
    return isinstance(value, str) and is_transcript_prompt(value)


def _prompt_field(record: Mapping[str, Any], chosen: str, side: object, name: str) -> tuple[str | None, str | None]:
    """The prompt's field, and the field that continues it; `side` is what stands in the field `chosen`."""
    whole = isinstance(side, list) and len(side) > 1  # a whole conversation, its prompt included
    if "prompt" in record:
        # UltraFeedback's lists repeat the prompt: then the turns say more than the text
        return (None if whole and isinstance(record["prompt"], str) else "prompt"), None
    if whole:
        return None, None
    found = [field for field in _PROMPTS if _is_prompt(get(record, field), field)]
    if found[:1] == ["instruction"]:
        rest = [field for field in found[1:] if field != "input"]
        more = "input"
        found = ["instruction", *rest]
    else:
        more = None
    if len(found) > 1:
        raise UserError(
            f"has several fields that may be the prompt: {', '.join(found)}.",
            _mapping_hint(name, record, (chosen, "rejected"), None, found[0]),
            where=name,
        )
    return (found[0] if found else None), more


def _is_prompt(value: object, field: str) -> bool:
    return isinstance(value, list if field in ("conversations", "messages", "input.messages") else str)


def _scored(record: Mapping[str, Any]) -> tuple[str, str, str, tuple[str, str] | None] | None:
    """Two responses with scores that order them: fields of the responses, the kind of order, fields of the scores."""
    for first, second in _TWO:
        if first in record and second in record:
            ends = [field.rsplit("_", 1)[1] for field in (first, second)]
            for word in SCORE_NAMES:
                for form in ("{word}_{end}", "{stem}_{end}_{word}", "{stem}_{word}_{end}"):
                    stem = first.rsplit("_", 1)[0]
                    scores = tuple(form.format(word=word, stem=stem, end=end) for end in ends)
                    if all(field in record for field in scores):
                        return first, second, "scores", (scores[0], scores[1])
    for field in _LISTS:
        responses = record.get(field)
        if isinstance(responses, list) and len(responses) == 2:
            plural = next((f"{w}s" for w in SCORE_NAMES if isinstance(record.get(f"{w}s"), list)), None)
            if plural is not None:
                return field, field, "list", (plural, plural)
            if all(isinstance(r, dict) and any(w in r for w in (*SCORE_NAMES, "overall_score")) for r in responses):
                return field, field, "list", None
    return None


def _incomplete(records: Sequence[Mapping[str, Any]]) -> Layout | None:
    """The layout that was meant where no record is whole: a field is missing or misspelt in all of them."""
    for record in records:
        keys = {folded(key) for key in record}
        for chosen, rejected in _RESPONSES:
            if keys & {folded(chosen), folded(rejected)}:
                side = record.get(chosen, record.get(rejected))
                implicit = isinstance(side, list) or (isinstance(side, str) and is_transcript(side))
                alone = chosen.endswith(("messages", "output")) or (implicit and "prompt" not in record)
                others = [f for f in _PROMPTS if _is_prompt(get(record, f), f)]
                prompt = None if alone else "prompt" if "prompt" in record or not others else others[0]
                return Layout(chosen=chosen, rejected=rejected, prompt=prompt, conversational=implicit)
    return None


def _mapped(records: Sequence[Mapping[str, Any]], columns: Mapping[str, str], name: str) -> Layout:
    """The layout that the person's mapping describes."""
    for part in columns:
        if part not in PARTS:
            near = difflib.get_close_matches(part, PARTS, n=1)
            raise UserError(
                f"columns names the part {part!r}, which there is not.",
                f"Did you mean {near[0]}?" if near else f"Parts are {', '.join(PARTS)}.",
                where=name,
            )
    for part, field in columns.items():
        if all(get(record, field) is MISSING for record in records):
            raise UserError(
                f"columns says that {part} is {field!r}, and no record has that field.",
                f"{did_you_mean(field, records[0])}Its fields are {', '.join(list(records[0])[:20])}.",
                where=name,
            )
    missing = [part for part in ("chosen", "rejected") if part not in columns and part not in records[0]]
    if missing:
        raise UserError(
            f"columns does not say what {missing[0]} is.",
            f"Add {missing[0]}: FIELD. The fields are {', '.join(list(records[0])[:20])}.",
            where=name,
        )
    chosen, rejected = columns.get("chosen", "chosen"), columns.get("rejected", "rejected")
    record = next((r for r in records if get(r, chosen) is not MISSING), records[0])
    prompt = columns.get("prompt") or _prompt_field(record, chosen, get(record, chosen), name)[0]
    scores = None
    if "score_chosen" in columns or "score_rejected" in columns:
        scores = (columns.get("score_chosen", "score_chosen"), columns.get("score_rejected", "score_rejected"))
    values = [get(record, field) for field in (chosen, prompt) if field is not None]
    return Layout(
        chosen=chosen,
        rejected=rejected,
        prompt=prompt,
        order="label" if "label" in columns else "names",
        label=columns.get("label"),
        scores=scores,
        system=columns.get("system", "system"),
        tools=columns.get("tools", "tools"),
        conversational=any(isinstance(v, list | dict) for v in values)
        or (isinstance(values[-1], str) and is_transcript(values[-1])),
    )


def _no_pairs(record: Mapping[str, Any], name: str) -> UserError:
    """Why a file holds no pairs, and the nearest fix."""
    keys = list(record)
    lists = [k for k, v in record.items() if isinstance(v, list) and v and isinstance(v[0], dict)]
    two = next((pair for pair in _TWO if pair[0] in record and pair[1] in record), None)
    if two is not None:
        label = next((k for k in ("label", "preference", "winner", "preferred", "better") if k in record), None)
        said = f" by {label!r}, whose meaning is not certain" if label else ""
        return UserError(
            f"holds two responses, {two[0]} and {two[1]}, and which one is preferred is told{said or ' by no field'}.",
            _mapping_hint(name, record, two, label),
            where=name,
        )
    if any(isinstance(record.get(k), bool) for k in ("label", "kto_tag", "desirable")):
        return UserError(
            "holds unpaired feedback (KTO): one response a record with a good or bad label. SimPO compares two "
            "responses to the same prompt.",
            "Join a good and a bad response of each prompt into records with prompt, chosen and rejected.",
            where=name,
        )
    if "messages" in record or "conversations" in record or ({"instruction", "output"} <= record.keys()):
        return UserError(
            "holds one response a record, no preferences (data for supervised tuning).",
            "SimPO needs a chosen and a rejected response to each prompt.",
            where=name,
        )
    if len(keys) <= 4 and len(lists) == 1:
        return UserError(
            f"holds its records under {lists[0]!r}, not as a list of records.",
            f"Unwrap it, such as with jq -c '.{lists[0]}[]' FILE > pairs.jsonl.",
            where=name,
        )
    return UserError(
        f"has no fields chosen and rejected; its fields are {', '.join(map(str, keys[:12])) or 'none'}.",
        _mapping_hint(name, record, ("FIELD", "FIELD"), None),
        where=name,
    )


def _mapping_hint(
    name: str, record: Mapping[str, Any], sides: tuple[str, str], label: str | None, prompt: str | None = None
) -> str:
    prompt = prompt or next((f for f in ("prompt", *_PROMPTS) if f in record), "FIELD")
    named = {"prompt": prompt, "chosen": sides[0], "rejected": sides[1]} | ({"label": label} if label else {})
    mapping = ", ".join(f"{part}: {field}" for part, field in named.items())
    said = " A label of 1 prefers the field under chosen, 2 the other." if label else ""
    return f"Say it in the recipe: data.train: [{{path: {name}, columns: {{{mapping}}}}}].{said}"
