"""Conversations as people write them (OpenAI, ShareGPT, content parts, transcripts) to turns."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from simpo_cli.data.json_records import parse_value
from simpo_cli.data.pair import Message
from simpo_cli.data.raw import RecordError, kind_of

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",  # the call, as the text that the model writes
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
_KNOWN = "system, user (human), assistant (gpt), tool (observation) and function_call"
_WHOLE = "Mend the record, or set data.on_bad_record: skip to leave such records out and count them."


def turns_of(value: object, path: str) -> list[Message]:
    """The turns of a list of messages.

    Args:
        value: what the record holds: a list of {role, content} or {from, value}.
        path: the field, for messages: `chosen`.

    Raises:
        RecordError: it is no such list.
    """
    if not isinstance(value, list):
        raise RecordError(f"{path}: expected a list of messages, got {kind_of(value)}", _WHOLE)
    if not value:
        raise RecordError(f"{path}: an empty list of messages", _WHOLE)
    turns = [turn_of(message, f"{path}[{i}]") for i, message in enumerate(value)]
    for i, turn in enumerate(turns[1:], start=1):
        if turn.role == "system":
            raise RecordError(f"{path}[{i}]: a system turn that is not the first", "Put the system turn first.")
    return turns


def turn_of(message: object, path: str) -> Message:
    """One turn of either dialect.

    Raises:
        RecordError: a missing or unknown role, or content that is not text.
    """
    if not isinstance(message, dict):
        raise RecordError(f"{path}: expected a message with role and content, got {kind_of(message)}", _WHOLE)
    role_key = "role" if "role" in message else "from" if "from" in message else None
    if role_key is None:
        raise RecordError(f"{path}: no role", f'A message is {{"role": ..., "content": ...}}. {_WHOLE}')
    name = message[role_key]
    if not isinstance(name, str):
        raise RecordError(f"{path}.{role_key}: expected text, got {kind_of(name)}", _WHOLE)
    role = _ROLES.get(name) or _ROLES.get(name.strip().lower())
    if role is None:
        raise RecordError(f"{path}.{role_key}: unknown role {name[:40]!r}", f"Known roles are {_KNOWN}.")
    return Message(role, _content(message, path))


def _content(message: dict[str, Any], path: str) -> str:
    key = "content" if "content" in message else "value" if "value" in message else None
    calls = message.get("tool_calls")
    content = None if key is None else message[key]
    if isinstance(content, str) and not calls:
        return content
    text = "" if content is None and calls else _joined(content, f"{path}.{key}" if key else path)
    return "\n".join([text, *_calls(calls, f"{path}.tool_calls")]).removeprefix("\n") if calls else text


def _joined(content: object, path: str) -> str:
    """Text, or text parts put together."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        if content is None:
            raise RecordError(f"{path}: no content", _WHOLE)
        raise RecordError(f"{path}: expected text, got {kind_of(content)}", _WHOLE)
    pieces = []
    for i, part in enumerate(content):
        if isinstance(part, str):
            pieces.append(part)
            continue
        if not isinstance(part, dict):
            raise RecordError(f"{path}[{i}]: expected a content part, got {kind_of(part)}", _WHOLE)
        kind = part.get("type", "text")
        if kind not in ("text", "input_text", "output_text"):
            raise RecordError(
                f"{path}[{i}]: a content part of type {str(kind)[:40]!r}; only text can be trained on",
                "Leave such records out with data.on_bad_record: skip.",
            )
        text = part.get("text", part.get("value"))
        if not isinstance(text, str):
            raise RecordError(f"{path}[{i}].text: expected text, got {kind_of(text)}", _WHOLE)
        pieces.append(text)
    return "".join(pieces)


def _calls(calls: object, path: str) -> list[str]:
    """Tool calls of an assistant turn as the JSON text that the model writes, one a line."""
    if not isinstance(calls, list):
        raise RecordError(f"{path}: expected a list, got {kind_of(calls)}", _WHOLE)
    texts = []
    for i, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RecordError(f"{path}[{i}]: expected a call with a function name", _WHOLE)
        arguments = function.get("arguments", {})
        arguments = _parsed(arguments) if isinstance(arguments, str) else arguments
        written = {"name": function["name"], "arguments": arguments}
        texts.append(json.dumps(written, ensure_ascii=False, default=str))
    return texts


def _parsed(text: str) -> Any:
    """What a text says as JSON; one that is none is kept as it is."""
    with suppress(json.JSONDecodeError, RecordError):
        value, end = parse_value(text.strip())
        if end == len(text.strip()):
            return value
    return text


# Human/Assistant transcripts, the form of HH-RLHF

_TURN = re.compile(r"\n\n(Human|Assistant):")
_LAST_MARKER = "\n\nAssistant:"
_SYSTEM = re.compile(r"System: ?(.*?)\n\n(?=Human:)", re.DOTALL)


def is_transcript(text: str) -> bool:
    """Whether a text is a whole dialogue: Human first, an Assistant turn somewhere."""
    return text.lstrip().startswith("Human:") and _LAST_MARKER in text


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
    shared = _common_length(chosen, rejected)
    end = chosen.rfind(_LAST_MARKER, 0, shared)
    if end < 0:
        raise RecordError(
            "the prompts of chosen and rejected differ",
            "Both dialogues must be the same up to the last answer. " + _WHOLE,
        )
    end += len(_LAST_MARKER)
    return transcript_turns(chosen[:end]), chosen[end:].removeprefix(" "), rejected[end:].removeprefix(" ")


def _common_length(a: str, b: str) -> int:
    """How many characters two texts have in common at their beginning."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high:  # a[:low] is always common
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def split_conversations(chosen: Sequence[Message], rejected: Sequence[Message]) -> tuple[list[Message], str, str]:
    """Prompt and responses of two whole conversations: the turns before the last one, which must be the same.

    Raises:
        RecordError: a conversation does not end with an answer, or the turns before it differ.
    """
    for path, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[-1].role != "assistant":
            raise RecordError(
                f"{path}[{len(turns) - 1}]: the last turn is by {turns[-1].role}, not by the assistant", _WHOLE
            )
    if list(chosen[:-1]) != list(rejected[:-1]):
        place = next(
            (i for i, (a, b) in enumerate(zip(chosen[:-1], rejected[:-1], strict=False)) if a != b),
            min(len(chosen), len(rejected)) - 1,
        )
        raise RecordError(
            f"the prompts of chosen and rejected differ (first in turn {place})",
            "Both conversations must be the same up to the last answer. " + _WHOLE,
        )
    return list(chosen[:-1]), chosen[-1].content, rejected[-1].content
