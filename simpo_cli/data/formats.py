"""Records to pairs: which fields a file uses, decided once from its first records, and what each record then gives.

The decision is made for the whole file and can be read (`Layout.described`); a record that does not follow it is
refused, so that no record is ever read in another way than its neighbours.
"""

import dataclasses
import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simpo_cli.data.messages import (
    is_transcript,
    is_transcript_prompt,
    split_conversations,
    split_transcripts,
    transcript_turns,
    turn_of,
    turns_of,
)
from simpo_cli.data.pair import Message, PreferencePair
from simpo_cli.data.raw import RecordError, kind_of
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
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("metadata.score_chosen", "metadata.score_rejected"),
)
_TWO = tuple(
    (name.format(a), name.format(b))
    for name in ("response_{}", "output_{}", "completion_{}", "answer_{}")
    for a, b in ((1, 2), (0, 1), ("a", "b"), ("A", "B"))
)
_SCORE_NAMES = ("score", "rating", "reward")
_LISTS = ("responses", "completions", "outputs", "answers")
PARTS = ("prompt", "chosen", "rejected", "label", "system", "tools", "score_chosen", "score_rejected")
"""What a column mapping may name."""

_MISSING: Any = object()
_TURNS_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](role|from|content|value)['"]\s*:""")
_SKIP = "Mend the record, or set data.on_bad_record: skip to leave such records out and count them."


class NoSignalError(Exception):
    """A well-formed record that cannot teach: `reason` is counted; `pair` is its pair, if it has an order at all."""

    def __init__(self, reason: str, pair: PreferencePair | None = None) -> None:
        self.reason, self.pair = reason, pair
        super().__init__(reason)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which field plays which part in a file. A name with dots reaches into objects.

    Attributes:
        chosen, rejected: the fields of the two responses; with `order` they are the first and the second.
        prompt: the prompt's field, or None where it is the beginning that the two sides share.
        order: what says which response is preferred: their names, a label column, or their scores.
        label: the label's field, 1 or 2 or a field's name.
        scores: the fields of the two scores, where the person names them or they order the pair.
        system, tools: fields of the system text and the tools.
        prompt_more: a field whose text belongs behind the prompt (`input` beside `instruction`).
        conversational: the records have turns; otherwise plain text. This is for people to read and decides nothing.
    """

    chosen: str
    rejected: str
    prompt: str | None
    order: str = "names"
    label: str | None = None
    scores: tuple[str, str] | None = None
    system: str = "system"
    tools: str = "tools"
    prompt_more: str | None = None
    conversational: bool = dataclasses.field(default=False, compare=False)

    def described(self) -> str:
        """The decision in words, such as `conversational, implicit prompt`."""
        form = "conversational" if self.conversational else "plain text"
        fields = [self.prompt] if self.prompt not in (None, "prompt") else []
        fields += [self.prompt_more] if self.prompt_more else []
        if self.prompt is None:
            prompt = "implicit prompt"
        else:
            prompt = "explicit prompt" + (f" ({' + '.join(str(f) for f in fields)})" if fields else "")
        match self.order:
            case "label":
                return f"{form}, {prompt}, {self.label} says which of {self.chosen} and {self.rejected} is preferred"
            case "scores":
                return f"{form}, {prompt}, the higher score of {self.chosen} and {self.rejected} is preferred"
            case "list":
                return f"{form}, {prompt}, the higher score of two {self.chosen} is preferred"
        if (self.chosen, self.rejected) != ("chosen", "rejected"):
            prompt += f", {self.chosen} over {self.rejected}"
        return f"{form}, {prompt}"

    @property
    def response(self) -> str:
        """What the response is, in words."""
        return "last assistant turn" if self.conversational and self.prompt is None else "the whole answer"


# Which layout


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
        conversational=turns or transcripts or (prompt is not None and isinstance(_get(record, prompt), list)),
    )


def _has_transcripts(record: Mapping[str, Any], side: str, prompt: str | None) -> bool:
    if prompt is None:
        return is_transcript(side)
    value = _get(record, prompt)
    return isinstance(value, str) and is_transcript_prompt(value)


def _prompt_field(record: Mapping[str, Any], chosen: str, side: object, name: str) -> tuple[str | None, str | None]:
    """The prompt's field, and the field that continues it; `side` is what stands in the field `chosen`."""
    whole = isinstance(side, list) and len(side) > 1  # a whole conversation, its prompt included
    if "prompt" in record:
        # UltraFeedback's lists repeat the prompt: then the turns say more than the text
        return (None if whole and isinstance(record["prompt"], str) else "prompt"), None
    if whole:
        return None, None
    found = [field for field in _PROMPTS if _is_prompt(_get(record, field), field)]
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
            for word in _SCORE_NAMES:
                for form in ("{word}_{end}", "{stem}_{end}_{word}", "{stem}_{word}_{end}"):
                    stem = first.rsplit("_", 1)[0]
                    scores = tuple(form.format(word=word, stem=stem, end=end) for end in ends)
                    if all(field in record for field in scores):
                        return first, second, "scores", (scores[0], scores[1])
    for field in _LISTS:
        responses = record.get(field)
        if isinstance(responses, list) and len(responses) == 2:
            plural = next((f"{w}s" for w in _SCORE_NAMES if isinstance(record.get(f"{w}s"), list)), None)
            if plural is not None:
                return field, field, "list", (plural, plural)
            if all(isinstance(r, dict) and any(w in r for w in (*_SCORE_NAMES, "overall_score")) for r in responses):
                return field, field, "list", None
    return None


def _incomplete(records: Sequence[Mapping[str, Any]]) -> Layout | None:
    """The layout that was meant where no record is whole: a field is missing or misspelt in all of them."""
    for record in records:
        folded = {_folded(key) for key in record}
        for chosen, rejected in _RESPONSES:
            if folded & {_folded(chosen), _folded(rejected)}:
                side = record.get(chosen, record.get(rejected))
                implicit = isinstance(side, list) or (isinstance(side, str) and is_transcript(side))
                alone = chosen.endswith(("messages", "output")) or (implicit and "prompt" not in record)
                others = [f for f in _PROMPTS if _is_prompt(_get(record, f), f)]
                prompt = None if alone else "prompt" if "prompt" in record or not others else others[0]
                return Layout(chosen=chosen, rejected=rejected, prompt=prompt, conversational=implicit)
    return None


def _folded(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "").replace(" ", "")


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
        if all(_get(record, field) is _MISSING for record in records):
            raise UserError(
                f"columns says that {part} is {field!r}, and no record has that field.",
                f"{_did_you_mean(field, records[0])}Its fields are {', '.join(list(records[0])[:20])}.",
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
    record = next((r for r in records if _get(r, chosen) is not _MISSING), records[0])
    prompt = columns.get("prompt") or _prompt_field(record, chosen, _get(record, chosen), name)[0]
    scores = None
    if "score_chosen" in columns or "score_rejected" in columns:
        scores = (columns.get("score_chosen", "score_chosen"), columns.get("score_rejected", "score_rejected"))
    values = [_get(record, field) for field in (chosen, prompt) if field is not None]
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


# One record


def to_pair(record: Mapping[str, Any], layout: Layout, where: str, warnings: Counter[str]) -> PreferencePair:
    """The pair that a record holds.

    Args:
        record: the record.
        layout: the file's layout.
        where: the record's place.
        warnings: gets what is worth telling and stops nothing.

    Raises:
        RecordError: the record is malformed.
        NoSignalError: it is well-formed and cannot teach.
    """
    chosen, rejected = _sides(record, layout, warnings)
    prompt = None if layout.prompt is None else _required(record, layout.prompt)
    turns, chosen_text, rejected_text = _split(record, layout, prompt, chosen, rejected)
    turns = _with_system(turns, record, layout)
    _require_prompt(turns, layout)
    if _has_nul(turns, chosen_text, rejected_text):
        warnings["NUL characters in texts"] += 1
    pair = PreferencePair(
        turns if isinstance(turns, str) else tuple(turns), chosen_text, rejected_text, where, _tools(record, layout)
    )
    if any(not text or text.isspace() for text in (chosen_text, rejected_text)):
        raise NoSignalError("empty response", pair)
    if chosen_text == rejected_text:
        raise NoSignalError("identical responses", pair)
    return pair


def _get(record: Mapping[str, Any], field: str) -> Any:
    """The value of a field; `metadata.score` reaches into objects unless a field has that very name."""
    value: Any = record.get(field, _MISSING)
    if value is not _MISSING or "." not in field:
        return value
    value = record
    for key in field.split("."):
        if not isinstance(value, dict) or key not in value:
            return _MISSING
        value = value[key]
    return value


def _required(record: Mapping[str, Any], field: str) -> Any:
    value = _get(record, field)
    if value is _MISSING:
        raise RecordError(f"{field} is missing", _did_you_mean(field, record) + _SKIP)
    if value is None:
        raise RecordError(f"{field}: expected text or messages, got null", _SKIP)
    return value


def _did_you_mean(field: str, record: Mapping[str, Any]) -> str:
    keys = [key for key in record if isinstance(key, str)]
    near = [key for key in keys if _folded(key) == _folded(field)]
    near = near or difflib.get_close_matches(field, keys, n=1, cutoff=0.8)
    return f"Did you mean {field} where it says {near[0]}? " if near else ""


def _sides(record: Mapping[str, Any], layout: Layout, warnings: Counter[str]) -> tuple[Any, Any]:
    """What the record holds as the preferred and the other response."""
    if layout.order == "list":
        return _sides_of_list(record, layout, warnings)
    first, second = _required(record, layout.chosen), _required(record, layout.rejected)
    if layout.label is not None:
        return (first, second) if _label(record, layout) else (second, first)
    fields = layout.scores or _known_scores(record)
    if fields is not None:
        scores = [_score(_get(record, field), field, warnings) for field in fields]
        if layout.order == "scores":
            _require_scores(scores, fields)
            _require_order(scores)
            return (first, second) if scores[0] > scores[1] else (second, first)  # type: ignore[operator]
        if None not in scores:
            if scores[0] == scores[1]:
                warnings["tied scores"] += 1
            elif scores[0] < scores[1]:  # type: ignore[operator]
                warnings["scores order the pair against its label"] += 1
    return first, second


def _known_scores(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """The fields of scores that stand beside a pair."""
    for fields in _SCORES:
        if _get(record, fields[0]) is not _MISSING and _get(record, fields[1]) is not _MISSING:
            return fields
    return None


def _require_scores(scores: Sequence[float | None], fields: Sequence[str]) -> None:
    for score, field in zip(scores, fields, strict=True):
        if score is None:
            raise RecordError(f"{field} is missing", "The scores say which response is preferred. " + _SKIP)


def _require_order(scores: Sequence[float | None]) -> None:
    if scores[0] == scores[1]:
        raise NoSignalError("tied scores")


def _sides_of_list(record: Mapping[str, Any], layout: Layout, warnings: Counter[str]) -> tuple[Any, Any]:
    """The two entries of a list of responses, the better one first."""
    responses = _required(record, layout.chosen)
    if not isinstance(responses, list) or len(responses) != 2:
        count = f"a list of {len(responses)}" if isinstance(responses, list) else kind_of(responses)
        raise RecordError(f"{layout.chosen}: expected a list of two responses, got {count}", _SKIP)
    fields = [f"{layout.chosen}[{i}]" for i in range(2)]
    if layout.scores is None:
        if not all(isinstance(r, dict) for r in responses):
            raise RecordError(f"{layout.chosen}: expected two objects with a score", _SKIP)
        raw = [next((r[w] for w in ("overall_score", *_SCORE_NAMES) if w in r), None) for r in responses]
        texts = [next((r[k] for k in ("response", "text", "content", "output") if k in r), None) for r in responses]
    else:
        raw, texts = _required(record, layout.scores[0]), responses
        if not isinstance(raw, list) or len(raw) != 2:
            raise RecordError(f"{layout.scores[0]}: expected a list of two scores", _SKIP)
    scores = [_score(value, field, warnings) for value, field in zip(raw, fields, strict=True)]
    _require_scores(scores, [f"the score of {field}" for field in fields])
    for text, field in zip(texts, fields, strict=True):
        if text is None:
            raise RecordError(f"{field}: no response text", _SKIP)
    _require_order(scores)
    return (texts[0], texts[1]) if scores[0] > scores[1] else (texts[1], texts[0])  # type: ignore[operator]


def _label(record: Mapping[str, Any], layout: Layout) -> bool:
    """Whether the label prefers the field under `chosen`."""
    assert layout.label is not None
    label = _required(record, layout.label)
    if label in ("tie", "equal", "both"):
        raise NoSignalError("tied label")
    if label == layout.chosen or label == layout.rejected:
        return bool(label == layout.chosen)
    if not isinstance(label, bool) and label in (1, 2, "1", "2"):
        return label in (1, "1")
    shown = repr(label) if isinstance(label, str | int | float) else kind_of(label)
    raise RecordError(
        f"{layout.label}: expected 1 or 2, got {shown[:40]}",
        f"1 prefers {layout.chosen}, 2 prefers {layout.rejected}; the fields' names are understood too.",
    )


def _score(value: Any, field: str, warnings: Counter[str]) -> float | None:
    if value is _MISSING or value is None:
        return None
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            raise RecordError(f"{field}: expected a number, got text {value[:40]!r}", _SKIP) from None
        warnings["scores written as text"] += 1
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(f"{field}: expected a number, got {kind_of(value)}", _SKIP)
    else:
        number = value
    if isinstance(number, float) and not math.isfinite(number):
        raise RecordError(f"{field}: {number} is no score", _SKIP)
    return number


# Prompt and responses


def _split(
    record: Mapping[str, Any], layout: Layout, prompt: Any, chosen: Any, rejected: Any
) -> tuple[list[Message] | str, str, str]:
    """Prompt, preferred and other response, whichever forms they have."""
    first, second = layout.chosen, layout.rejected
    for value, field in ((chosen, first), (rejected, second)):
        if not isinstance(value, str | list | dict):
            raise RecordError(f"{field}: expected text or messages, got {kind_of(value)}", _SKIP)
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise RecordError(f"{first} is a {kind_of(chosen)} and {second} is {kind_of(rejected)}", _SKIP)
    if isinstance(chosen, list):
        return _split_lists(record, layout, prompt, turns_of(chosen, first), turns_of(rejected, second))
    texts = [_response_text(value, field) for value, field in ((chosen, first), (rejected, second))]
    if all(map(_TURNS_AS_TEXT.match, texts)):
        raise RecordError(
            f"{first} and {second} are lists of messages written as text",
            "Write the lists themselves; pandas does so with to_json(orient='records', lines=True), not with to_csv.",
        )
    if prompt is None:
        return _split_without_prompt(texts, layout)
    if isinstance(prompt, list):
        return _prompt_turns(prompt, layout, texts[0]), texts[0], texts[1]
    if not isinstance(prompt, str):
        raise RecordError(f"{layout.prompt}: expected text or messages, got {kind_of(prompt)}", _SKIP)
    if is_transcript_prompt(prompt):
        # some files repeat the dialogue in front of each response
        repeated = all(text.startswith(prompt) for text in texts)
        bare = [(text[len(prompt) :] if repeated else text).removeprefix(" ") for text in texts]
        return transcript_turns(prompt), bare[0], bare[1]
    if all(map(is_transcript, texts)):
        turns, *bare = split_transcripts(*texts)
        if prompt.strip() not in (turns[-1].content.strip(), texts[0][: -len(bare[0]) or None].strip()):
            raise RecordError(f"{layout.prompt} is not the prompt of the dialogue in {first}", _SKIP)
        return turns, bare[0], bare[1]
    if layout.prompt_more is not None:
        more = _get(record, layout.prompt_more)
        if more is not _MISSING and more is not None and not isinstance(more, str):
            raise RecordError(f"{layout.prompt_more}: expected text, got {kind_of(more)}", _SKIP)
        prompt = f"{prompt}\n{more}" if isinstance(more, str) and more.strip() else prompt
    return _with_history(prompt, record), texts[0], texts[1]


def _split_without_prompt(texts: Sequence[str], layout: Layout) -> tuple[list[Message], str, str]:
    if not all(map(is_transcript, texts)):
        if any(map(is_transcript, texts)):
            side = layout.rejected if is_transcript(texts[0]) else layout.chosen
            raise RecordError(f"{side} is no whole dialogue (Human: ... Assistant: ...), as the other side is", _SKIP)
        raise RecordError(
            "prompt is missing",
            f"{layout.chosen} and {layout.rejected} are not whole dialogues either. " + _SKIP,
        )
    return split_transcripts(texts[0], texts[1])


def _split_lists(
    record: Mapping[str, Any], layout: Layout, prompt: Any, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message] | str, str, str]:
    if prompt is None:
        turns, *texts = split_conversations(chosen, rejected)
        text = record.get("prompt")
        if isinstance(text, str) and turns and text.strip() not in [turn.content.strip() for turn in turns]:
            raise RecordError(f"prompt is in none of the turns of {layout.chosen} before the answer", _SKIP)
        return turns, texts[0], texts[1]
    if isinstance(prompt, str):
        if len(chosen) == len(rejected) == 1:
            turns, *texts = split_conversations(chosen, rejected)
            return prompt if not is_transcript_prompt(prompt) else transcript_turns(prompt), texts[0], texts[1]
        return _split_lists({**record, "prompt": prompt}, layout, None, chosen, rejected)
    before = turns_of(prompt, str(layout.prompt))
    for field, turns in ((layout.chosen, chosen), (layout.rejected, rejected)):
        if len(turns) > 1 and turns[: len(before)] != before:
            raise RecordError(f"{field} does not begin with the turns of {layout.prompt}", _SKIP)
    chosen, rejected = (turns if len(turns) == 1 else turns[len(before) :] for turns in (chosen, rejected))
    if not chosen or not rejected:
        raise RecordError(f"{layout.rejected if chosen else layout.chosen}: no answer behind the prompt", _SKIP)
    more, *texts = split_conversations(chosen, rejected)
    return [*before, *more], texts[0], texts[1]


def _response_text(value: object, field: str) -> str:
    """The text of one response that is no list: text, or a single message by the assistant."""
    if isinstance(value, str):
        return value
    turn = turn_of(value, field)
    if turn.role != "assistant":
        raise RecordError(f"{field}: the answer is by {turn.role}, not by the assistant", _SKIP)
    return turn.content


def _prompt_turns(prompt: list[Any], layout: Layout, chosen: str) -> list[Message]:
    turns = turns_of(prompt, str(layout.prompt))
    if turns[-1].role == "assistant" and turns[-1].content == chosen:
        raise RecordError(f"{layout.prompt} ends with the chosen answer itself", "End the prompt before the answer.")
    if turns[-1].role == "system":
        raise RecordError(f"{layout.prompt}[{len(turns) - 1}]: the prompt ends with a system turn", _SKIP)
    return turns


def _with_history(prompt: str, record: Mapping[str, Any]) -> list[Message] | str:
    """The turns before the prompt, where a file gives them as pairs of question and answer."""
    history = record.get("history")
    if not history:
        return prompt
    if not isinstance(history, list) or not all(
        isinstance(p, list) and len(p) == 2 and all(isinstance(t, str) for t in p) for p in history
    ):
        raise RecordError("history: expected a list of [question, answer]", _SKIP)
    turns = [Message(role, text) for p in history for role, text in zip(("user", "assistant"), p, strict=True)]
    return [*turns, Message("user", prompt)]


def _with_system(turns: list[Message] | str, record: Mapping[str, Any], layout: Layout) -> list[Message] | str:
    system = _get(record, layout.system)
    if system is _MISSING or system is None or system == "":
        return turns
    if not isinstance(system, str):
        raise RecordError(f"{layout.system}: expected text, got {kind_of(system)}", _SKIP)
    if isinstance(turns, str):
        turns = [Message("user", turns)]
    return turns if turns[:1] and turns[0].role == "system" else [Message("system", system), *turns]


def _require_prompt(turns: list[Message] | str, layout: Layout) -> None:
    if not isinstance(turns, str) and not turns:
        raise RecordError("prompt is missing", _SKIP)
    texts = [turns] if isinstance(turns, str) else [turn.content for turn in turns if turn.role != "system"]
    if not any(text and not text.isspace() for text in texts):
        raise RecordError(f"{layout.prompt or 'the prompt'} is empty", _SKIP)


def _tools(record: Mapping[str, Any], layout: Layout) -> str | None:
    tools = _get(record, layout.tools)
    if tools is _MISSING or tools is None or tools in ("", []):
        return None
    if isinstance(tools, list | dict):
        return json.dumps(tools, ensure_ascii=False)
    if not isinstance(tools, str):
        raise RecordError(f"{layout.tools}: expected a list of tools, got {kind_of(tools)}", _SKIP)
    try:
        json.loads(tools)
    except (ValueError, RecursionError):
        fix = "Tools are a list of JSON objects. " + _SKIP
        raise RecordError(f"{layout.tools}: the text is not JSON", fix) from None
    return tools


def _has_nul(turns: list[Message] | str, chosen: str, rejected: str) -> bool:
    prompts = [turns] if isinstance(turns, str) else [turn.content for turn in turns]
    return any("\0" in text for text in (chosen, rejected, *prompts))
