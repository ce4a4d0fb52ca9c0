"""Messages in the form that a template reads, which is learned by rendering made-up ones.

Messages go to the template as the record holds them, as in transformers, but for what a template cannot write:

- Arguments of a call are an object or its JSON as text, and many templates write only one of the two right: the other
  is quoted twice, or written as Python writes it. There the arguments are given in the form that the template writes.
- Content is null beside calls in OpenAI's form. Where a template fails at it, or writes `None`, it is an empty text.
- Where a template has no place for calls, they stand behind the content as JSON, one a line.
- Reasoning is also given under the names that templates read, `reasoning_content` and `thinking`.
- Where a template writes only lists of content parts, a text is a list of one.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from simpo_cli.data.messages import REASONING, text_of
from simpo_cli.data.pair import Message
from simpo_cli.data.tokenizer.template import TemplateError

CALL_KEY, CALL_VALUE = "qZ7kqk", "qZ7kqw"  # a made-up argument
_ARGUMENTS = {CALL_KEY: CALL_VALUE}
_TEXT = json.dumps(_ARGUMENTS)
_QUESTION = "qZ7kqu"
MADE_UP_TOOLS = [
    {
        "type": "function",
        "function": {"name": "qZ7kqf", "description": "-", "parameters": {"type": "object", "properties": {}}},
    }
]

Render = Callable[[Sequence[dict[str, Any]]], str]


@dataclass(frozen=True, slots=True)
class MessageShape:
    """What a template can write.

    Attributes:
        calls: tool calls.
        arguments_as_object, arguments_as_text: their arguments in this form.
        null_content: a turn of calls whose content is null.
        parts: content is to be a list of parts.
    """

    calls: bool = True
    arguments_as_object: bool = True
    arguments_as_text: bool = True
    null_content: bool = True
    parts: bool = False

    def of(self, message: Message) -> dict[str, Any]:
        """A message as this template reads it."""
        fields: dict[str, Any] = json.loads(message.fields) if message.fields else {"content": message.content}
        if calls := fields.get("tool_calls"):
            if self.calls:
                fields["tool_calls"] = [self._call(call) for call in calls]
                if fields.get("content") is None and not self.null_content:
                    fields["content"] = ""
            else:
                del fields["tool_calls"]
                fields["content"] = text_of(fields.get("content"), calls)
        if self.parts and isinstance(fields.get("content"), str):
            fields["content"] = [{"type": "text", "text": fields["content"]}]
        reasoning = next((fields[name] for name in REASONING if fields.get(name) is not None), None)
        if reasoning is not None:
            fields = {"thinking": reasoning, **fields, "reasoning_content": reasoning}
        return {"role": message.role, **fields}

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        given = call["function"].get("arguments")
        if isinstance(given, str) and not self.arguments_as_text:
            with suppress(json.JSONDecodeError, RecursionError):
                given = json.loads(given)
        elif isinstance(given, dict) and not self.arguments_as_object:
            given = json.dumps(given, ensure_ascii=False)
        else:
            return call
        return {**call, "function": {**call["function"], "arguments": given}}


def made_up_call(content: str | None, arguments: Any) -> dict[str, Any]:
    """An assistant's turn that calls a made-up tool."""
    call = {"id": "qZ7kqid01", "type": "function", "function": {"name": "qZ7kqf", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def learn_shape(render: Render, *, knows_calls: bool) -> MessageShape:
    """What a template can write.

    Args:
        render: the template, given messages as they are.
        knows_calls: whether it mentions calls at all.
    """

    def tried(*messages: dict[str, Any]) -> str | None:
        try:
            return render(messages)
        except TemplateError:
            return None

    parts = False
    if _QUESTION not in (tried({"role": "user", "content": _QUESTION}) or ""):
        as_parts = tried({"role": "user", "content": [{"type": "text", "text": _QUESTION}]})
        parts = as_parts is not None and as_parts.count(_QUESTION) == 1 and repr(_QUESTION) not in as_parts
    if not knows_calls:
        return MessageShape(calls=False, parts=parts)
    asked = {"role": "user", "content": [{"type": "text", "text": _QUESTION}] if parts else _QUESTION}
    seen = {
        (content, form): tried(asked, made_up_call(content, arguments))
        for content in (None, "")
        for form, arguments in (("object", _ARGUMENTS), ("text", _TEXT))
    }
    if all(text is None for text in seen.values()):  # it says itself what it wants
        return MessageShape(parts=parts)
    as_object = any(_writes_object(seen[content, "object"]) for content in (None, ""))
    as_text = any(_TEXT in (seen[content, "text"] or "") for content in (None, ""))
    form = "object" if as_object else "text"
    null, empty = seen[None, form], seen["", form]
    return MessageShape(
        calls=as_object or as_text,
        arguments_as_object=as_object,
        arguments_as_text=as_text,
        null_content=null is not None and (empty is None or null.count("None") <= empty.count("None")),
        parts=parts,
    )


def _writes_object(text: str | None) -> bool:
    """Whether a rendering holds the made-up arguments, and not as Python writes them."""
    return text is not None and CALL_KEY in text and CALL_VALUE in text and repr(_ARGUMENTS) not in text
