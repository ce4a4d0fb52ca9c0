"""Rewrites of records whose layout no pattern of fields can say: each turns one record into those that `columns` of its
layout (known.py) is about, leaves every text as it is, and raises RecordError for a record that is not what the layout
promises.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from simpo_cli.data.formats.names import SKIP, Record, Records, required
from simpo_cli.data.json_records import whole_value
from simpo_cli.data.pair import RecordError, kind_of

_VERTEX = ("systemInstruction", "system_instruction", "contents", "completions")


def beside_messages(record: Record) -> Records:
    """ms-swift: `messages` ends with the better answer; `rejected_response` is the other, a text or its turns."""
    messages = _objects(record, "messages")
    other = required(record, "rejected_response")
    better, last = record.get("chosen_response"), messages[-1] if messages else {}
    said = last.get("content", last.get("value"))
    if isinstance(better, str) and isinstance(said, str) and better.strip() not in ("", said.strip()):
        raise RecordError(
            "messages does not end with chosen_response",
            "If messages is the prompt alone, name it prompt; if its last turn is the better answer, leave "
            "chosen_response out.",
        )
    if isinstance(other, list) and len(other) == 1 and isinstance(other[0], str):
        other = other[0]
    if isinstance(other, list):  # it stands for all turns behind the last one of the user
        asked = max((i + 1 for i, turn in enumerate(messages) if turn.get("role") == "user"), default=0)
        rejected = [*messages[:asked], *other]
    else:
        dialect = {key: messages[-1][key] for key in ("role", "from") if key in messages[-1]}
        rejected = [*messages[:-1], {**dialect, "content": other}]
    return [_without(record, "messages", "rejected_response") | {"chosen": messages, "rejected": rejected}]


def lists_as_text(record: Record) -> Records:
    """Chatbot Arena's table: the turns of the user and of either model are JSON lists in cells of text."""
    asked = _texts(record, "prompt")
    sides = {}
    for side in ("response_a", "response_b"):
        answers = _texts(record, side)
        if len(answers) != len(asked):
            raise RecordError(f"{side}: {len(answers)} answers to {len(asked)} turns of prompt", SKIP)
        turns = zip(asked, answers, strict=True)
        sides[side] = [
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
    return [_without(record, "prompt") | sides]


def _texts(record: Record, field: str) -> list[str]:
    """The texts of a cell that holds a JSON list of them; any other text is the only one."""
    cell = required(record, field)
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        with suppress(json.JSONDecodeError):
            cell = whole_value(cell)
    texts = [cell] if isinstance(cell, str) else cell
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RecordError(f"{field}: expected a list of texts", SKIP)
    return texts


def vertex(record: Record) -> Records:
    """Vertex AI: `contents` and `completions` are turns whose content stands under `parts`."""
    if record.get("tools"):
        raise RecordError("tools: the functions of Vertex AI have a form that templates do not know", SKIP)
    system = record.get("systemInstruction", record.get("system_instruction"))
    prompt = [_of_parts({"role": "system", **system}, "systemInstruction")] if isinstance(system, dict) else []
    prompt += [_of_parts(turn, "contents") for turn in _objects(record, "contents")]
    answers = [
        {"score": one.get("score"), "text": [_of_parts(one.get("completion"), "completions")]}
        for one in _objects(record, "completions")
    ]
    return [_without(record, *_VERTEX) | {"prompt": prompt, "completions": answers}]


def _of_parts(turn: Any, field: str) -> Record:
    if not isinstance(turn, dict) or "parts" not in turn:
        raise RecordError(f"{field}: expected a turn with role and parts, got {kind_of(turn)}", SKIP)
    return {"role": turn.get("role", "user"), "content": turn["parts"]}


def nova(record: Record) -> Records:
    """Amazon Nova: the last of `messages` has two `candidates`, labelled preferred and non-preferred."""
    *before, last = _objects(record, "messages")
    system = record.get("system")
    prompt = [{"role": "system", "content": system}] if system else []
    found = {one.get("preferenceLabel"): one.get("content") for one in _objects(last, "candidates")}
    if len(last["candidates"]) != 2 or found.keys() != {"preferred", "non-preferred"}:
        raise RecordError("messages: expected two candidates, one preferred and one non-preferred", SKIP)
    sides = {
        side: [{"role": "assistant", "content": found[label]}]
        for side, label in (("chosen", "preferred"), ("rejected", "non-preferred"))
    }
    return [_without(record, "schemaVersion", "system", "messages") | {"prompt": [*prompt, *before], **sides}]


def oasst(record: Record) -> Records:
    """An OASST tree: one record for each message of the user that has two or more ranked replies."""
    beside = _without(record, "prompt", "tree_state")
    return [beside | found for found in _ranked(required(record, "prompt"), ())]


def _ranked(node: Any, before: tuple[Record, ...]) -> Iterator[dict[str, Any]]:
    if not isinstance(node, dict) or not isinstance(node.get("text"), str):
        raise RecordError(f"prompt: expected a message with text and replies, got {kind_of(node)}", SKIP)
    turns = (*before, {"role": node.get("role"), "content": node["text"]})
    replies = node.get("replies") or []
    if not isinstance(replies, list):
        raise RecordError(f"replies: expected a list, got {kind_of(replies)}", SKIP)
    shown = [one for one in replies if isinstance(one, dict) and not one.get("deleted")]
    ranked = [one for one in shown if one.get("rank") is not None]
    if node.get("role") == "prompter" and len(ranked) > 1:
        yield {
            "prompt": [*turns],
            "replies": [one.get("text") for one in ranked],
            "ranks": [one["rank"] for one in ranked],
        }
    for reply in replies:
        yield from _ranked(reply, turns)


def label_studio(record: Record) -> Records:
    """Label Studio's JSON: the fields of `data` beside what the annotators selected, on which they must agree."""
    data = required(record, "data")
    if not isinstance(data, dict):
        raise RecordError(f"data: expected an object, got {kind_of(data)}", SKIP)
    selected = [
        _pointed_at(result, data)
        for one in _objects(record, "annotations")
        if not one.get("was_cancelled")
        for result in _objects(one, "result")
        if result.get("type") == "pairwise" and isinstance(result.get("value"), dict)
    ]
    return [{**data, "selected": _agreed(selected, "annotations")}]


def _pointed_at(result: Record, data: Record) -> Any:
    """The field that `left` or `right` points at; the word itself where the labels of the two texts are no fields."""
    side = result["value"].get("selected")
    shown = [name.strip() for name in str(result.get("to_name") or "").split(",")]
    if side not in ("left", "right") or len(shown) != 2:
        return side
    if all(name in data for name in shown):
        return shown[side == "right"]
    return side if shown[0] < shown[1] else {"left": "right", "right": "left"}[side]  # text2,text1


def argilla(record: Record) -> Records:
    """Argilla's records: the `fields` beside the answer to each question, on which the annotators must agree."""
    fields, responses = required(record, "fields"), required(record, "responses")
    if not isinstance(fields, dict) or not isinstance(responses, dict):
        raise RecordError("fields and responses: expected objects", SKIP)
    answers = {
        question if question not in fields else f"responses.{question}": _agreed(
            [one.get("value") for one in _objects(record, f"responses.{question}") if one.get("status") != "discarded"],
            f"responses.{question}",
        )
        for question in responses
    }
    return [{**fields, **answers}]


def _agreed(values: Sequence[Any], field: str) -> Any:
    if not values:
        raise RecordError(f"{field}: no answer of an annotator", SKIP)
    if any(value != values[0] for value in values):
        answers = ", ".join(str(value)[:30] for value in values[:5])
        raise RecordError(f"{field}: the annotators do not agree ({answers})", SKIP)
    return values[0]


def _without(record: Record, *names: str) -> dict[str, Any]:
    """The other fields of a record, which are used or listed as they stand."""
    return {name: value for name, value in record.items() if name not in names}


def _objects(record: Record, field: str) -> list[Any]:
    """The objects of a list that is not empty."""
    value = required(record, field)
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        found = "an empty one" if value == [] else kind_of(value)
        raise RecordError(f"{field}: expected a list of objects, got {found}", SKIP)
    return value
