"""One record to one pair: where the prompt ends and the two responses begin, in texts, messages and transcripts."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from simpo_cli.data.formats.direction import NoSignalError, Notes, places_of, responses_of
from simpo_cli.data.formats.layout import Layout
from simpo_cli.data.formats.names import MISSING, SKIP, Record, from_json, get, required, words_of
from simpo_cli.data.messages import (
    MESSAGE_AS_TEXT,
    asks_again,
    is_transcript,
    is_transcript_prompt,
    parsed,
    several_turns,
    split_conversations,
    split_transcripts,
    transcript_turns,
    turn_of,
    turns_of,
)
from simpo_cli.data.pair import Message, PreferencePair, RecordError, RecordNote, kind_of

Turns = list[Message] | str
Parts = tuple[Turns, Message, Message]
"""Prompt, chosen and rejected response."""


_MEDIA = ("image", "video", "audio")
_LISTS_OF_MEDIA = tuple(f"{side}{name}s" for side in ("", "rejected_") for name in _MEDIA)
_TOOLS = "Tools are a list of JSON objects. " + SKIP


def to_pair(record: Record, layout: Layout, where: str, notes: Notes) -> PreferencePair:
    """The pair that a record at some place holds; `notes` gets what is worth telling and stops nothing.

    Raises:
        RecordError: the record is malformed.
        NoSignalError: it is well-formed and cannot teach.
    """
    responses = responses_of(record, layout)
    best, worst = places_of(record, layout, len(responses), notes)
    prompt, chosen, rejected = split_record(record, layout, responses[best], responses[worst], notes)
    texts = [prompt] if isinstance(prompt, str) else [turn.content for turn in prompt]
    _require_text_only(record, texts)
    if any("\0" in text for text in (*texts, chosen.content, rejected.content)):
        notes[RecordNote.NUL] += 1
    pair = PreferencePair(
        prompt if isinstance(prompt, str) else tuple(prompt),
        chosen.content,
        rejected.content,
        where,
        tools=_tools(record, layout),
        template_kwargs=_template_kwargs(record),
        chosen_fields=chosen.fields,
        rejected_fields=rejected.fields,
    )
    if any(not text or text.isspace() for text in (chosen.content, rejected.content)):
        raise NoSignalError("empty response", pair)
    if chosen == rejected:
        raise NoSignalError("identical responses", pair)
    return pair


def split_record(record: Record, layout: Layout, chosen: Any, rejected: Any, notes: Notes) -> Parts:
    """Prompt, preferred and other response, whichever forms they have.

    Two turns of the user in a row become one, their texts joined by an empty line, and are counted in `notes`.

    `chosen` and `rejected` are what the record holds as the two responses, perhaps with the prompt in front.

    Raises:
        RecordError: the record has no such form.
    """
    prompt = None if layout.prompt is None else required(record, layout.prompt)
    turns, better, worse = _split(record, layout, _with_more(prompt, record, layout), chosen, rejected)
    if not isinstance(turns, str):
        if isinstance(chosen, str) and is_transcript(chosen) and any(map(asks_again, (better.content, worse.content))):
            notes[RecordNote.FURTHER_TURNS] += 1
        repeated = record.get(layout.prompt or "prompt")
        has_turns = isinstance(chosen, list) and len(chosen) > 1
        texts = [turn.content.strip() for turn in turns]
        if has_turns and isinstance(repeated, str) and repeated.strip() not in texts:
            notes[RecordNote.OTHER_PROMPT] += 1
        turns = _joined(turns, notes)
    turns = _with_system(_with_history(turns, record, layout), record, layout)
    if not turns and isinstance(turns, list):
        raise RecordError("prompt is missing", SKIP)
    texts = [turns] if isinstance(turns, str) else [turn.content for turn in turns if turn.role != "system"]
    if not any(text and not text.isspace() for text in texts):
        raise RecordError(f"{layout.prompt or 'the prompt'} is empty", SKIP)
    return turns, better, worse


def _joined(turns: Sequence[Message], notes: Notes) -> list[Message]:
    """The turns of a prompt, those of the user that follow one another as one."""
    joined: list[Message] = []
    for turn in turns:
        if joined and turn.role == joined[-1].role == "user":
            if turn.fields != joined[-1].fields:
                raise RecordError(
                    f"two turns of the user in a row, {joined[-1].content[:40]!r} and {turn.content[:40]!r}, that are "
                    "more than texts",
                    SKIP,
                )
            joined[-1] = Message("user", f"{joined[-1].content}\n\n{turn.content}")
        else:
            joined.append(turn)
    if joined and joined[-1].role == "assistant":
        if not joined[-1].content.strip():
            raise RecordError("the prompt ends with an empty turn of the assistant", "Leave that turn out. " + SKIP)
        notes[RecordNote.ENDS_WITH_ANSWER] += 1
    if len(joined) < len(turns):
        notes[RecordNote.JOINED_TURNS] += 1
    return joined


def _split(record: Record, layout: Layout, prompt: Any, chosen: Any, rejected: Any) -> Parts:
    first, second = layout.chosen, layout.rejected
    chosen, rejected = _one_text(chosen, first), _one_text(rejected, second)
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise RecordError(f"{first} is a {kind_of(chosen)} and {second} is {kind_of(rejected)}", SKIP)
    prompt = [prompt] if isinstance(prompt, dict) else prompt
    if isinstance(chosen, list):
        return _split_lists(record, layout, prompt, turns_of(chosen, first), turns_of(rejected, second))
    better, worse = _response(chosen, first), _response(rejected, second)
    texts = (better.content, worse.content)
    if all(MESSAGE_AS_TEXT.match(text) and text.lstrip().startswith("[") for text in texts):
        raise RecordError(
            f"{first} and {second} are lists of messages written as text",
            "Write the lists themselves; pandas does so with to_json(orient='records', lines=True), not with to_csv.",
        )
    dialogues = [is_transcript(text) for text in texts]
    if prompt is None and not all(dialogues):
        if any(dialogues):
            side = second if dialogues[0] else first
            raise RecordError(f"{side} is no whole dialogue (Human: ... Assistant: ...), as the other side is", SKIP)
        raise RecordError("prompt is missing", f"{first} and {second} are not whole dialogues either. " + SKIP)
    if isinstance(prompt, list):
        return _prompt_turns(record, prompt, layout, better.content), better, worse
    if not isinstance(prompt, str | None):
        raise RecordError(f"{layout.prompt}: expected text or messages, got {kind_of(prompt)}", SKIP)
    if prompt is not None and is_transcript_prompt(prompt):
        # some files repeat the dialogue in front of each response
        repeated = all(text.startswith(prompt) for text in texts)
        bare = [(text[len(prompt) :] if repeated else text).removeprefix(" ") for text in texts]
        return transcript_turns(prompt), Message("assistant", bare[0]), Message("assistant", bare[1])
    if all(dialogues):
        turns, *bare = split_transcripts(*texts)
        whole = texts[0][: -len(bare[0]) or None]
        if prompt is not None and prompt.strip() not in (turns[-1].content.strip(), whole.strip()):
            raise RecordError(f"{layout.prompt} is not the prompt of the dialogue in {first}", SKIP)
        return turns, Message("assistant", bare[0]), Message("assistant", bare[1])
    assert prompt is not None
    return _messages_beside(record, layout, prompt) or prompt, better, worse


def _one_text(value: Any, field: str) -> Any:
    """The value of a side; a list of one text is that text."""
    if not isinstance(value, str | list | dict):
        raise RecordError(f"{field}: expected text or messages, got {kind_of(value)}", SKIP)
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        if len(value) > 1:
            raise RecordError(f"{field}: a list of {len(value)} texts, and a response is one text or message", SKIP)
        return value[0]
    return value


def _response(value: object, field: str) -> Message:
    """One response that is no list: text, or a single message by the assistant."""
    if isinstance(value, str):
        return Message("assistant", value)
    turn = turn_of(value, field)
    if turn.role != "assistant":
        raise RecordError(f"{field}: the answer is by {turn.role}, not by the assistant", SKIP)
    return turn


def _split_lists(record: Record, layout: Layout, prompt: Any, chosen: list[Message], rejected: list[Message]) -> Parts:
    sides = ((layout.chosen, chosen), (layout.rejected, rejected))
    if not isinstance(prompt, str | None):
        before = turns_of(prompt, str(layout.prompt))
        for field, turns in sides:
            if len(turns) > 1 and turns[: len(before)] != before:
                if turns[0].role == "assistant":
                    raise several_turns(field, turns)
                raise RecordError(f"{field} does not begin with the turns of {layout.prompt}", SKIP)
        chosen, rejected = (turns if len(turns) == 1 else turns[len(before) :] for _, turns in sides)
        if not chosen or not rejected:
            raise RecordError(f"{layout.rejected if chosen else layout.chosen}: no answer behind the prompt", SKIP)
        more, better, worse = split_conversations(chosen, rejected)
        return [*(_messages_beside(record, layout, before) or before), *more], better, worse
    for field, turns in sides:
        if prompt is not None and len(turns) > 1 and turns[0].role == "assistant":
            raise several_turns(field, turns)
    before, better, worse = split_conversations(chosen, rejected)
    if prompt is not None and not before:  # the sides are one answer each
        if is_transcript_prompt(prompt):
            return transcript_turns(prompt), better, worse
        return _messages_beside(record, layout, prompt) or prompt, better, worse
    text = record.get("prompt") if prompt is None else prompt
    if isinstance(text, str) and before:  # case and all white space aside, one of the turns says it
        words = text.casefold().split()
        if all(turn.content.casefold().split() != words for turn in before):
            raise RecordError(f"prompt is in none of the turns of {layout.chosen} before the answer", SKIP)
    return before, better, worse


# The prompt and what stands before it


def _messages_beside(record: Record, layout: Layout, prompt: Turns) -> list[Message] | None:
    """The conversation that a record holds beside its last question, or its last turns; None where it holds none."""
    for field in ("messages", "conversations"):
        value = record.get(field)
        if field == layout.prompt or not isinstance(value, list) or not value or not isinstance(value[0], dict):
            continue
        turns = turns_of(value, field)
        open_turns = turns[:-1] if turns[-1].role == "assistant" else turns
        if isinstance(prompt, list):
            if any(part and prompt[-len(part) :] == part for part in (turns, open_turns)):
                return prompt
            is_last = open_turns[-len(prompt) :] == prompt
        else:
            is_last = bool(open_turns) and open_turns[-1].content.strip() == prompt.strip()
        if not is_last:
            raise RecordError(
                f"{layout.prompt} is not the last question of {field}",
                f"Leave one of them out, or say which is the prompt with columns: {{prompt: {field}}}.",
            )
        return open_turns
    return None


def _prompt_turns(record: Record, prompt: list[Any], layout: Layout, chosen: str) -> list[Message]:
    turns = turns_of(prompt, str(layout.prompt))
    turns = _messages_beside(record, layout, turns) or turns
    if turns[-1].role == "assistant" and turns[-1].content == chosen:
        raise RecordError(f"{layout.prompt} ends with the chosen answer itself", "End the prompt before the answer.")
    if turns[-1].role == "system":
        raise RecordError(f"{layout.prompt}[{len(turns) - 1}]: the prompt ends with a system turn", SKIP)
    return turns


def _with_more(prompt: Any, record: Record, layout: Layout) -> Any:
    """The prompt, and behind it the text that continues it (Alpaca's `input`)."""
    more = None if layout.prompt_more is None else get(record, layout.prompt_more)
    if more is None or more is MISSING or (isinstance(more, str) and not more.strip()):
        return prompt
    if not isinstance(more, str):
        raise RecordError(f"{layout.prompt_more}: expected text, got {kind_of(more)}", SKIP)
    if not isinstance(prompt, str) or is_transcript_prompt(prompt):
        raise RecordError(f"{layout.prompt_more}: cannot be joined to a prompt that is a conversation", SKIP)
    return f"{prompt}\n{more}"


def _with_history(turns: Turns, record: Record, layout: Layout) -> Turns:
    """The prompt behind the turns that came before it, which a file gives as messages or as [question, answer]."""
    history = None if layout.prompt in (None, layout.history) else get(record, layout.history)
    history = parsed(history) if isinstance(history, str) else history  # a table may have it as text
    if history is MISSING or not history:
        return turns
    if isinstance(history, list) and all(isinstance(turn, dict) for turn in history):
        before = turns_of(history, layout.history)
    elif isinstance(history, list) and all(
        isinstance(p, list) and len(p) == 2 and all(isinstance(t, str) for t in p) for p in history
    ):
        before = [Message(role, text) for p in history for role, text in zip(("user", "assistant"), p, strict=True)]
    else:
        raise RecordError(f"{layout.history}: expected messages or a list of [question, answer]", SKIP)
    if before[-1].role != "assistant":
        raise RecordError(f"{layout.history}: ends with a turn by {before[-1].role}, not with an answer", SKIP)
    turns = [Message("user", turns)] if isinstance(turns, str) else turns
    count = 1 if turns[:1] and turns[0].role == "system" else 0
    if turns[count : count + len(before)] == before:
        return turns  # the prompt repeats them
    return [*turns[:count], *before, *turns[count:]]


def _with_system(turns: Turns, record: Record, layout: Layout) -> Turns:
    """The turns behind the system text that the record holds in a field of its own."""
    system = get(record, layout.system)
    if system is MISSING or system in (None, "", []):
        return turns
    if not isinstance(system, str | list):
        raise RecordError(f"{layout.system}: expected text, got {kind_of(system)}", SKIP)
    if len(system) > 1 and isinstance(system, list) and all(isinstance(text, str) for text in system):
        raise RecordError(f"{layout.system}: a list of {len(system)} texts, and the system text is one", SKIP)
    opening = turn_of({"role": "system", "content": system}, layout.system)
    turns = [Message("user", turns)] if isinstance(turns, str) else turns
    if not turns or turns[0].role != "system":
        return [opening, *turns]
    if turns[0].content.strip() != opening.content.strip():
        problem = f"{layout.system} and the system turn of the conversation say different things"
        raise RecordError(problem, "Leave one of them out. " + SKIP)
    return turns


# What stands beside the texts


def _tools(record: Record, layout: Layout) -> str | None:
    """JSON text of the tools that the conversation may call."""
    tools = get(record, layout.tools)
    if tools is MISSING or tools in (None, "", []):
        return None
    if not isinstance(tools, str | list | dict):
        raise RecordError(f"{layout.tools}: expected a list of tools, got {kind_of(tools)}", SKIP)
    value = from_json(tools, layout.tools) if isinstance(tools, str) else tools
    if not isinstance(value, list | dict):
        raise RecordError(f"{layout.tools}: the text is no list of tools", _TOOLS)
    if isinstance(tools, str) and (isinstance(value, dict) or all(isinstance(tool, dict) for tool in value)):
        return tools  # as it was written
    if isinstance(value, list):
        value = [_tool(tool, f"{layout.tools}[{i}]") for i, tool in enumerate(value)]
    return json.dumps(value, ensure_ascii=False, default=str)  # a table may hold dates


def _tool(tool: Any, path: str) -> dict[str, Any]:
    """One tool of a list: an object, or an object as JSON text."""
    value = from_json(tool, path) if isinstance(tool, str) else tool
    if not isinstance(value, dict):
        raise RecordError(f"{path}: expected the definition of a tool, got {kind_of(value)}", _TOOLS)
    return value


def _template_kwargs(record: Record) -> str | None:
    """JSON text of the record's own variables for the chat template, which TRL and smoltalk2 keep in a column."""
    field = "chat_template_kwargs"
    value = record.get(field)
    if isinstance(value, str) and value.strip():
        value = from_json(value, field)
    if value in (None, "", {}):
        return None
    if not isinstance(value, dict):
        raise RecordError(f"{field}: expected an object, got {kind_of(value)}", SKIP)
    given = {name: one for name, one in value.items() if one is not None}  # a column writes null for what is not there
    return json.dumps(given, ensure_ascii=False, default=str) if given else None


def _require_text_only(record: Record, texts: Sequence[str]) -> None:
    """Refuse a record with pictures, films or sound, which would be dropped from what is asked."""
    if not any(map(_speaks_of_media, record)):
        return  # as in nearly every file; the texts are not searched then
    found = [name for name in _LISTS_OF_MEDIA if record.get(name)]
    for name in _MEDIA:
        found += [name] if isinstance(record.get(name), dict | list | bytes) else []
        if any(f"<{name}>" in text for text in texts):
            found += [field for field, value in record.items() if value and name in words_of(field)]
    if found:
        raise RecordError(
            f"{found[0]}: the record is about more than its texts, and only text can be trained on",
            "Leave such records out with data.on_bad_record: skip, or take the field out of those that make sense "
            "without it.",
        )


@lru_cache(maxsize=4096)
def _speaks_of_media(field: str) -> bool:
    return any(name in field.lower() for name in _MEDIA)
