"""Conversations as people write them (OpenAI, ShareGPT, LangChain, content parts, transcripts) to turns."""

import json
import re
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from simpo_cli.data.json_records import whole_value
from simpo_cli.data.pair import Message, RecordError, kind_of

_NAMES_OF_ROLES = {
    "system": "system developer",
    "user": "user human prompter",
    "assistant": "assistant gpt chatgpt bot chatbot ai model function_call tool_call",
    "tool": "tool observation function function_response tool_response ipython",
}
_ROLES = {name: role for role, names in _NAMES_OF_ROLES.items() for name in names.split()}
_CALL_ROLES = ("function_call", "tool_call")  # turns whose text is the JSON of a call
_KNOWN = "system, user (human), assistant (gpt, ai), tool (observation, tool_response) and function_call (tool_call)"
_CONTENTS = ("content", "value", "message", "text")
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of what an answer thinks, in the order in which transformers looks for them."""
MESSAGE_AS_TEXT = re.compile(r"""[\[\s]*\{\s*(['"])(?:role|from|content|value)\1\s*:""")
"""How the text of a message or of a list of them begins, as JSON or as Python shows it."""
_WHOLE = "Mend the record, or set data.on_bad_record: skip to leave such records out and count them."


def turns_of(value: object, path: str) -> list[Message]:
    """The turns of a list of messages; a turn that is a call belongs to the assistant's turn in front of it.

    Args:
        value: what the record holds: a list of {role, content}, {from, value} or {type, content}.
        path: the field, for messages: `chosen`.

    Raises:
        RecordError: it is no such list.
    """
    if not isinstance(value, list):
        raise RecordError(f"{path}: expected a list of messages, got {kind_of(value)}", _WHOLE)
    if not value:
        raise RecordError(f"{path}: an empty list of messages", _WHOLE)
    turns: list[tuple[str, dict[str, Any]]] = []
    for i, message in enumerate(value):
        role, fields, is_call = _parts_of(message, f"{path}[{i}]")
        if role == "system" and i:
            raise RecordError(f"{path}[{i}]: a system turn that is not the first", "Put the system turn first.")
        if is_call and turns and turns[-1][0] == "assistant":
            calls = [*turns[-1][1].get("tool_calls", ()), *fields["tool_calls"]]
            turns[-1] = role, {**turns[-1][1], "tool_calls": calls}
        else:
            turns.append((role, fields))
    return [_message(role, fields) for role, fields in turns]


def turn_of(message: object, path: str) -> Message:
    """One turn of any dialect.

    Raises:
        RecordError: a missing or unknown role, or content that is not text.
    """
    return _message(*_parts_of(message, path)[:2])


def _parts_of(message: object, path: str) -> tuple[str, dict[str, Any], bool]:
    """Role and fields of a message, and whether it is a turn that only calls."""
    if not isinstance(message, dict):
        raise RecordError(f"{path}: expected a message with role and content, got {kind_of(message)}", _WHOLE)
    role_key = next((key for key in ("role", "from", "type") if key in message), None)
    if role_key is None:
        raise RecordError(f"{path}: no role", f'A message is {{"role": ..., "content": ...}}. {_WHOLE}')
    if role_key == "type" and isinstance(data := message.get("data"), dict):  # as LangChain stores messages
        return _parts_of({**data, "role": message["type"]}, path)
    name = message[role_key]
    if not isinstance(name, str):
        raise RecordError(f"{path}.{role_key}: expected text, got {kind_of(name)}", _WHOLE)
    name = name if name in _ROLES else name.strip().lower()
    role = _ROLES.get(name)
    if role is None:
        raise RecordError(f"{path}.{role_key}: unknown role {message[role_key][:40]!r}", f"Known roles are {_KNOWN}.")
    key = next((key for key in _CONTENTS if key in message), None)
    calls = _calls(message, path)
    content = None if key is None else message[key]
    if content is not None or not calls:
        content = _joined(content, f"{path}.{key}" if key else path)
    own_call = _call_in(content) if name in _CALL_ROLES and not calls else []
    if own_call:
        calls, content = own_call, None
    fields = {} if key is None and content is None and not own_call else {"content": content}
    used = (role_key, key, "function_call", "tool_calls")
    fields |= {one: value for one, value in message.items() if one not in used and value not in (None, [], {})}
    return role, fields | ({"tool_calls": calls} if calls else {}), bool(own_call)


def _message(role: str, fields: dict[str, Any]) -> Message:
    content = fields.get("content")
    if content is not None and len(fields) == 1:
        return Message(role, content)
    thoughts = (fields.get(name) for name in REASONING)
    reasoning = next((text for text in thoughts if isinstance(text, str) and text.strip()), None)
    text = text_of(content, fields.get("tool_calls", ()))
    text = text if reasoning is None else f"{reasoning}\n{text}"
    return Message(role, text, json.dumps(fields, ensure_ascii=False, default=str))  # a table may hold dates


def text_of(content: str | None, calls: Sequence[Any]) -> str:
    """Content and calls of a turn as one text: calls as JSON, one a line, as many models write them."""
    return "\n".join([content or "", *map(_call_text, calls)]).removeprefix("\n") if calls else content or ""


def _call_text(call: dict[str, Any]) -> str:
    function = call["function"]
    written = {"name": function["name"]}
    if "arguments" in function:
        given = function["arguments"]
        written["arguments"] = parsed(given) if isinstance(given, str) else given
    return json.dumps(written, ensure_ascii=False, default=str)


def _calls(message: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """The calls of an assistant's turn as {type, function: {name, arguments}}; OpenAI's first one had no list."""
    given = message.get("tool_calls")
    if given and not isinstance(given, list):
        raise RecordError(f"{path}.tool_calls: expected a list, got {kind_of(given)}", _WHOLE)
    listed = [(f"{path}.tool_calls[{i}]", call) for i, call in enumerate(given or ())]
    if message.get("function_call") is not None:
        listed.append((f"{path}.function_call", message["function_call"]))
    calls = []
    for place, call in listed:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RecordError(f"{place}: expected a call with a function name", _WHOLE)
        calls.append(call if "function" in call else {"type": "function", "function": call})
    return calls


def _call_in(text: str | None) -> list[dict[str, Any]]:
    """The calls that a turn of a call holds as JSON, one or a list; none where the text is something else."""
    value = parsed(text or "")
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in listed):
        return []
    return [{"type": "function", "function": call} for call in listed]


def _joined(content: object, path: str) -> str:
    """Text, or text parts put together."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        problem = "no content" if content is None else f"expected text, got {kind_of(content)}"
        raise RecordError(f"{path}: {problem}", _WHOLE)
    pieces = []
    for i, part in enumerate(content):
        if isinstance(part, str):
            pieces.append(part)
            continue
        if not isinstance(part, dict):
            raise RecordError(f"{path}[{i}]: expected a content part, got {kind_of(part)}", _WHOLE)
        kind = part.get("type", "text")
        if kind not in ("text", "input_text", "output_text"):
            problem = f"{path}[{i}]: a content part of type {str(kind)[:40]!r}; only text can be trained on"
            raise RecordError(problem, "Leave such records out with data.on_bad_record: skip.")
        text = part.get("text", part.get("value"))
        if not isinstance(text, str):
            raise RecordError(f"{path}[{i}].text: expected text, got {kind_of(text)}", _WHOLE)
        pieces.append(text)
    return "".join(pieces)


def parsed(text: str) -> Any:
    """What a text says as JSON; one that is none is kept as it is."""
    with suppress(json.JSONDecodeError, RecordError):
        return whole_value(text)
    return text


# Human/Assistant transcripts, the form of HH-RLHF

_TURN = re.compile(r"\n\n(Human|Assistant):")
_LAST_MARKER = "\n\nAssistant:"
_SYSTEM = re.compile(r"System: ?(.*?)\n\n(?=Human:)", re.DOTALL)


def is_transcript(text: str) -> bool:
    """Whether a text is a whole dialogue: Human first, an Assistant turn somewhere."""
    return text.lstrip().startswith("Human:") and _LAST_MARKER in text


def asks_again(answer: str) -> bool:
    """Whether an answer of a dialogue goes on with what the human says next."""
    return "\n\nHuman:" in answer


def is_transcript_prompt(text: str) -> bool:
    """Whether a text is a dialogue that ends where the assistant is to speak; a System turn may open it."""
    if not text.rstrip().endswith(_LAST_MARKER):
        return False
    start = text.lstrip()
    return start.startswith("Human:") or (start.startswith("System:") and _SYSTEM.match(start) is not None)


def transcript_turns(prompt: str) -> list[Message]:
    """The turns of a dialogue that ends with "\\n\\nAssistant:"; the one space behind each marker is the marker's."""
    prompt = prompt.lstrip()
    turns = []
    if opening := _SYSTEM.match(prompt):
        turns.append(Message("system", opening[1]))
        prompt = prompt[opening.end() :]
    parts = _TURN.split("\n\n" + prompt)
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        turns.append(Message("user" if name == "Human" else "assistant", text.removeprefix(" ")))
    return turns[:-1]


def as_transcript(turns: Sequence[Message]) -> str:
    """A conversation as text that `transcript_turns` reads back, open for the next answer."""
    names = {"user": "Human", "assistant": "Assistant", "system": "System", "tool": "Tool"}
    return "\n\n".join([*(f"{names[turn.role]}: {turn.content}" for turn in turns), "Assistant:"])


def split_transcripts(chosen: str, rejected: str) -> tuple[list[Message], str, str]:
    """Prompt and responses of two whole dialogues: their longest common beginning, cut after its last "Assistant:".

    Cutting each dialogue at its own last marker would go wrong where a response holds such a marker itself.

    Raises:
        RecordError: the dialogues differ before any assistant turn.
    """
    length = min(len(chosen), len(rejected))
    shared = bisect_left(range(length), True, key=lambda i: not rejected.startswith(chosen[: i + 1]))
    end = chosen.rfind(_LAST_MARKER, 0, shared)
    if end < 0:
        problem = "the prompts of chosen and rejected differ"
        raise RecordError(problem, "Both dialogues must be the same up to the last answer. " + _WHOLE)
    end += len(_LAST_MARKER)
    return transcript_turns(chosen[:end]), chosen[end:].removeprefix(" "), rejected[end:].removeprefix(" ")


def split_conversations(
    chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[list[Message], Message, Message]:
    """Prompt and responses of two whole conversations: the turns before the last one, which must be the same.

    Raises:
        RecordError: a conversation does not end with an answer, or the turns before it differ.
    """
    for path, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[-1].role != "assistant":
            problem = f"{path}[{len(turns) - 1}]: the last turn is by {turns[-1].role}, not by the assistant"
            raise RecordError(problem, _WHOLE)
    if list(chosen[:-1]) != list(rejected[:-1]):
        shorter = min(len(chosen), len(rejected)) - 1
        place = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)
        path, turns = max((("chosen", chosen), ("rejected", rejected)), key=lambda side: len(side[1]))
        if turns[place].role == "assistant":
            raise several_turns(path, turns[place:])
        problem = f"the prompts of chosen and rejected differ (first in turn {place})"
        raise RecordError(problem, "Both conversations must be the same up to the last answer. " + _WHOLE)
    return list(chosen[:-1]), chosen[-1], rejected[-1]


def several_turns(path: str, turns: Sequence[Message]) -> RecordError:
    """That a side holds more than one answer."""
    return RecordError(
        f"{path}: {len(turns)} turns behind the prompt ({', '.join(turn.role for turn in turns)}), and a response is "
        "one answer of the assistant",
        "Move the turns that both sides share into the prompt, so that each side holds one answer. " + _WHOLE,
    )
