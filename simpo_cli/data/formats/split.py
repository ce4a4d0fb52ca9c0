"""Where the prompt ends and the two responses begin, in texts, messages and Human/Assistant transcripts."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from simpo_cli.data.formats.fields import MISSING, SKIP, from_json, get
from simpo_cli.data.formats.layout import Layout
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
from simpo_cli.data.pair import Message
from simpo_cli.data.raw import RecordError, RecordNote, kind_of


def split_record(
    record: Mapping[str, Any], layout: Layout, prompt: Any, chosen: Any, rejected: Any, notes: Counter[RecordNote]
) -> tuple[list[Message] | str, Message, Message]:
    """Prompt, preferred and other response, whichever forms they have.

    Two turns of the user in a row become one, their texts joined by an empty line, and are counted in `notes`.

    Raises:
        RecordError: the record has no such form.
    """
    turns, better, worse = _split(record, layout, prompt, chosen, rejected)
    if isinstance(turns, str):
        return turns, better, worse
    if isinstance(chosen, str) and is_transcript(chosen) and any(map(asks_again, (better.content, worse.content))):
        notes[RecordNote.FURTHER_TURNS] += 1
    repeated = record.get(layout.prompt or "prompt")
    is_said_twice = isinstance(chosen, list) and len(chosen) > 1
    if isinstance(repeated, str) and is_said_twice and not _is_among(repeated, turns):
        notes[RecordNote.OTHER_PROMPT] += 1
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
    return joined, better, worse


def _split(
    record: Mapping[str, Any], layout: Layout, prompt: Any, chosen: Any, rejected: Any
) -> tuple[list[Message] | str, Message, Message]:
    first, second = layout.chosen, layout.rejected
    chosen, rejected = (_one_text(value, field) for value, field in ((chosen, first), (rejected, second)))
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise RecordError(f"{first} is a {kind_of(chosen)} and {second} is {kind_of(rejected)}", SKIP)
    prompt = [prompt] if isinstance(prompt, dict) else prompt
    if isinstance(chosen, list):
        return _split_lists(record, layout, prompt, turns_of(chosen, first), turns_of(rejected, second))
    answers = [_response(value, field) for value, field in ((chosen, first), (rejected, second))]
    texts = [answer.content for answer in answers]
    if all(MESSAGE_AS_TEXT.match(text) and text.lstrip().startswith("[") for text in texts):
        raise RecordError(
            f"{first} and {second} are lists of messages written as text",
            "Write the lists themselves; pandas does so with to_json(orient='records', lines=True), not with to_csv.",
        )
    if prompt is None:
        return _split_without_prompt(texts, layout)
    if isinstance(prompt, list):
        return _prompt_turns(record, prompt, layout, texts[0]), answers[0], answers[1]
    if not isinstance(prompt, str):
        raise RecordError(f"{layout.prompt}: expected text or messages, got {kind_of(prompt)}", SKIP)
    if is_transcript_prompt(prompt):
        # some files repeat the dialogue in front of each response
        repeated = all(text.startswith(prompt) for text in texts)
        bare = [(text[len(prompt) :] if repeated else text).removeprefix(" ") for text in texts]
        return transcript_turns(prompt), *_answers(bare)
    if all(map(is_transcript, texts)):
        turns, *bare = split_transcripts(*texts)
        if prompt.strip() not in (turns[-1].content.strip(), texts[0][: -len(bare[0]) or None].strip()):
            raise RecordError(f"{layout.prompt} is not the prompt of the dialogue in {first}", SKIP)
        return turns, *_answers(bare)
    beside = _messages_beside(record, layout, prompt)
    return beside if beside is not None else prompt, answers[0], answers[1]


def _is_among(text: str, turns: Sequence[Message]) -> bool:
    """Whether one of the turns says this text, white space around it aside."""
    return text.strip() in [turn.content.strip() for turn in turns]


def _is_nearly_among(text: str, turns: Sequence[Message]) -> bool:
    """Whether one of the turns says this text, case and all white space aside."""
    words = text.casefold().split()
    return any(turn.content.casefold().split() == words for turn in turns)


def _one_text(value: Any, field: str) -> Any:
    """The value of a side; a list of one text is that text."""
    if not isinstance(value, str | list | dict):
        raise RecordError(f"{field}: expected text or messages, got {kind_of(value)}", SKIP)
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        if len(value) > 1:
            raise RecordError(f"{field}: a list of {len(value)} texts, and a response is one text or message", SKIP)
        return value[0]
    return value


def _answers(texts: Sequence[str]) -> tuple[Message, Message]:
    return Message("assistant", texts[0]), Message("assistant", texts[1])


def _split_without_prompt(texts: Sequence[str], layout: Layout) -> tuple[list[Message], Message, Message]:
    if not all(map(is_transcript, texts)):
        if any(map(is_transcript, texts)):
            side = layout.rejected if is_transcript(texts[0]) else layout.chosen
            raise RecordError(f"{side} is no whole dialogue (Human: ... Assistant: ...), as the other side is", SKIP)
        raise RecordError(
            "prompt is missing",
            f"{layout.chosen} and {layout.rejected} are not whole dialogues either. " + SKIP,
        )
    turns, *bare = split_transcripts(texts[0], texts[1])
    return turns, *_answers(bare)


def _split_lists(
    record: Mapping[str, Any], layout: Layout, prompt: Any, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message] | str, Message, Message]:
    if prompt is None:
        turns, *answers = split_conversations(chosen, rejected)
        text = record.get("prompt")
        if isinstance(text, str) and turns and not (_is_among(text, turns) or _is_nearly_among(text, turns)):
            raise RecordError(f"prompt is in none of the turns of {layout.chosen} before the answer", SKIP)
        return turns, answers[0], answers[1]
    if isinstance(prompt, str):
        if len(chosen) == len(rejected) == 1:
            _, *answers = split_conversations(chosen, rejected)
            if is_transcript_prompt(prompt):
                return transcript_turns(prompt), answers[0], answers[1]
            beside = _messages_beside(record, layout, prompt)
            return beside if beside is not None else prompt, answers[0], answers[1]
        for field, turns in ((layout.chosen, chosen), (layout.rejected, rejected)):
            if len(turns) > 1 and turns[0].role == "assistant":
                raise several_turns(field, turns)
        return _split_lists({**record, "prompt": prompt}, layout, None, chosen, rejected)
    before = turns_of(prompt, str(layout.prompt))
    for field, turns in ((layout.chosen, chosen), (layout.rejected, rejected)):
        if len(turns) > 1 and turns[: len(before)] != before:
            if turns[0].role == "assistant":
                raise several_turns(field, turns)
            raise RecordError(f"{field} does not begin with the turns of {layout.prompt}", SKIP)
    chosen, rejected = (turns if len(turns) == 1 else turns[len(before) :] for turns in (chosen, rejected))
    if not chosen or not rejected:
        raise RecordError(f"{layout.rejected if chosen else layout.chosen}: no answer behind the prompt", SKIP)
    more, *answers = split_conversations(chosen, rejected)
    return [*(_messages_beside(record, layout, before) or before), *more], answers[0], answers[1]


def _response(value: object, field: str) -> Message:
    """One response that is no list: text, or a single message by the assistant."""
    if isinstance(value, str):
        return Message("assistant", value)
    turn = turn_of(value, field)
    if turn.role != "assistant":
        raise RecordError(f"{field}: the answer is by {turn.role}, not by the assistant", SKIP)
    return turn


def _messages_beside(record: Mapping[str, Any], layout: Layout, prompt: str | list[Message]) -> list[Message] | None:
    """The conversation that a record holds beside its last question, or its last turns; None where it holds none.

    Raises:
        RecordError: the conversation ends with something else.
    """
    for field in ("messages", "conversations"):
        value = record.get(field)
        if field == layout.prompt or not isinstance(value, list) or not value or not isinstance(value[0], dict):
            continue
        turns = turns_of(value, field)
        if isinstance(prompt, list) and _ends_with(prompt, turns):
            return prompt
        turns = turns[:-1] if turns[-1].role == "assistant" else turns
        if isinstance(prompt, list) and turns and _ends_with(prompt, turns):
            return prompt
        if not turns or not _is_last(turns, prompt):
            raise RecordError(
                f"{layout.prompt} is not the last question of {field}",
                f"Leave one of them out, or say which is the prompt with columns: {{prompt: {field}}}.",
            )
        return turns
    return None


def _is_last(turns: list[Message], prompt: str | list[Message]) -> bool:
    if isinstance(prompt, list):
        return _ends_with(turns, prompt)
    return turns[-1].content.strip() == prompt.strip()


def _ends_with(turns: list[Message], last: list[Message]) -> bool:
    return turns[-len(last) :] == last


def _prompt_turns(record: Mapping[str, Any], prompt: list[Any], layout: Layout, chosen: str) -> list[Message]:
    turns = turns_of(prompt, str(layout.prompt))
    turns = _messages_beside(record, layout, turns) or turns
    if turns[-1].role == "assistant" and turns[-1].content == chosen:
        raise RecordError(f"{layout.prompt} ends with the chosen answer itself", "End the prompt before the answer.")
    if turns[-1].role == "system":
        raise RecordError(f"{layout.prompt}[{len(turns) - 1}]: the prompt ends with a system turn", SKIP)
    return turns


def with_more(prompt: Any, record: Mapping[str, Any], layout: Layout) -> Any:
    """The prompt, and behind it the text that continues it (Alpaca's `input`)."""
    more = None if layout.prompt_more is None else get(record, layout.prompt_more)
    if more is None or more is MISSING or more == "":
        return prompt
    if not isinstance(more, str):
        raise RecordError(f"{layout.prompt_more}: expected text, got {kind_of(more)}", SKIP)
    if not more.strip():
        return prompt
    if not isinstance(prompt, str) or is_transcript_prompt(prompt):
        raise RecordError(f"{layout.prompt_more}: cannot be joined to a prompt that is a conversation", SKIP)
    return f"{prompt}\n{more}"


def with_history(turns: list[Message] | str, record: Mapping[str, Any], layout: Layout) -> list[Message] | str:
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


def with_system(turns: list[Message] | str, record: Mapping[str, Any], layout: Layout) -> list[Message] | str:
    """The turns behind the system text that the record holds in a field of its own.

    Raises:
        RecordError: it is no text, or the conversation has a system turn with another one.
    """
    system = get(record, layout.system)
    if system is MISSING or system is None or system in ("", []):
        return turns
    if not isinstance(system, str | list):
        raise RecordError(f"{layout.system}: expected text, got {kind_of(system)}", SKIP)
    if len(system) > 1 and isinstance(system, list) and all(isinstance(text, str) for text in system):
        raise RecordError(f"{layout.system}: a list of {len(system)} texts, and the system text is one", SKIP)
    opening = turn_of({"role": "system", "content": system}, layout.system)
    if isinstance(turns, str):
        turns = [Message("user", turns)]
    if not turns or turns[0].role != "system":
        return [opening, *turns]
    if turns[0].content.strip() != opening.content.strip():
        raise RecordError(
            f"{layout.system} and the system turn of the conversation say different things",
            "Leave one of them out. " + SKIP,
        )
    return turns


def template_kwargs_of(record: Mapping[str, Any]) -> str | None:
    """JSON text of the record's own variables for the chat template, which TRL and smoltalk2 keep in a column.

    Raises:
        RecordError: the column holds something else.
    """
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


def require_prompt(turns: list[Message] | str, layout: Layout) -> None:
    if not isinstance(turns, str) and not turns:
        raise RecordError("prompt is missing", SKIP)
    texts = [turns] if isinstance(turns, str) else [turn.content for turn in turns if turn.role != "system"]
    if not any(text and not text.isspace() for text in texts):
        raise RecordError(f"{layout.prompt or 'the prompt'} is empty", SKIP)
