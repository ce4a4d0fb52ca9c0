"""One record to one pair, by the layout of its file."""

import json
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from simpo_cli.data.formats.fields import MISSING, SKIP, from_json, get, required, words_of
from simpo_cli.data.formats.layout import Layout
from simpo_cli.data.formats.preferred import NoSignalError, sides_of
from simpo_cli.data.formats.split import (
    require_prompt,
    split_record,
    template_kwargs_of,
    with_history,
    with_more,
    with_system,
)
from simpo_cli.data.pair import Message, PreferencePair
from simpo_cli.data.raw import RecordError, RecordNote, kind_of

_MEDIA = ("image", "video", "audio")
_LISTS_OF_MEDIA = tuple(f"{side}{name}s" for side in ("", "rejected_") for name in _MEDIA)
_TOOLS = "Tools are a list of JSON objects. " + SKIP
_ONLY_TEXT = "the record is about more than its texts, and only text can be trained on"
_WITHOUT = (
    "Leave such records out with data.on_bad_record: skip, or take the field out of those that make sense without it."
)


def to_pair(record: Mapping[str, Any], layout: Layout, where: str, notes: Counter[RecordNote]) -> PreferencePair:
    """The pair that a record holds.

    Args:
        record: the record.
        layout: the file's layout.
        where: the record's place.
        notes: gets what is worth telling and stops nothing.

    Raises:
        RecordError: the record is malformed.
        NoSignalError: it is well-formed and cannot teach.
    """
    chosen, rejected = sides_of(record, layout, notes)
    prompt = None if layout.prompt is None else required(record, layout.prompt)
    prompt = with_more(prompt, record, layout)
    turns, better, worse = split_record(record, layout, prompt, chosen, rejected, notes)
    turns = with_system(with_history(turns, record, layout), record, layout)
    require_prompt(turns, layout)
    _require_text_only(record, turns)
    if _has_nul(turns, better.content, worse.content):
        notes[RecordNote.NUL] += 1
    pair = PreferencePair(
        turns if isinstance(turns, str) else tuple(turns),
        better.content,
        worse.content,
        where,
        tools=_tools(record, layout),
        template_kwargs=template_kwargs_of(record),
        chosen_fields=better.fields,
        rejected_fields=worse.fields,
    )
    if any(not text or text.isspace() for text in (better.content, worse.content)):
        raise NoSignalError("empty response", pair)
    if better == worse:
        raise NoSignalError("identical responses", pair)
    return pair


def _tools(record: Mapping[str, Any], layout: Layout) -> str | None:
    tools = get(record, layout.tools)
    if tools is MISSING or tools is None or tools in ("", []):
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


def _require_text_only(record: Mapping[str, Any], turns: list[Message] | str) -> None:
    """Refuse a record with pictures, films or sound, which would be dropped from what is asked."""
    if not any(map(_speaks_of_media, record)):
        return  # as in nearly every file; the texts are not searched then
    for name in _LISTS_OF_MEDIA:
        if record.get(name):
            raise RecordError(f"{name}: {_ONLY_TEXT}", _WITHOUT)
    texts = [turns] if isinstance(turns, str) else [turn.content for turn in turns]
    for name in _MEDIA:
        if isinstance(record.get(name), dict | list | bytes):
            raise RecordError(f"{name}: {_ONLY_TEXT}", _WITHOUT)
        if any(f"<{name}>" in text for text in texts):
            for field, value in record.items():
                if value and name in words_of(str(field)):
                    raise RecordError(f"{field}: {_ONLY_TEXT}", _WITHOUT)


@lru_cache(maxsize=4096)
def _speaks_of_media(field: str) -> bool:
    return any(name in str(field).lower() for name in _MEDIA)


def _has_nul(turns: list[Message] | str, chosen: str, rejected: str) -> bool:
    if "\0" in chosen or "\0" in rejected:
        return True
    return "\0" in turns if isinstance(turns, str) else any("\0" in turn.content for turn in turns)
