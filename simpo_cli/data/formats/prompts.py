"""The field of the prompt: the one that the person names, or the one that the usual names speak for."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from simpo_cli.data.formats import refusals
from simpo_cli.data.formats.fields import get
from simpo_cli.data.formats.orders import Answers, Records
from simpo_cli.data.formats.stated import Stated

_ROLES = frozenset({"role", "from"})
_PROMPTS = ("conversations", "instruction", "question", "query", "input", "input.messages", "messages")


def find_prompt(records: Records, answers: Answers, stated: Stated, name: str) -> tuple[str | None, str | None]:
    """The prompt's field, None where the sides hold it, and the field that continues it."""
    below = stated.field("input")
    if (said := stated.field("prompt")) is not None:
        return said, below
    votes = Counter(_prompt_of(record, answers, name) for record in records)
    prompt, found = votes.most_common(1)[0][0]
    return prompt, below or found


def prompt_fields(record: Mapping[str, Any]) -> list[str]:
    """The fields of a record that may be its prompt by their names."""
    return [field for field in _PROMPTS if _is_prompt(get(record, field), field)]


def _prompt_of(record: Mapping[str, Any], answers: Answers, name: str) -> tuple[str | None, str | None]:
    side = None if answers.is_list else get(record, answers.fields[0])
    whole = isinstance(side, list) and len(side) > 1  # a whole conversation, its prompt included
    if "prompt" in record:
        # UltraFeedback's lists repeat the prompt: then the turns say more than the text
        return (None if whole and isinstance(record["prompt"], str) else "prompt"), None
    if whole:
        return None, None
    found = [field for field in prompt_fields(record) if field not in answers.fields]
    below = None
    if found[:1] == ["instruction"]:
        found = [field for field in found if field != "input"]
        below = "input"
    if len(found) > 1:
        raise refusals.several_prompts(found, answers.fields, name)
    return (found[0] if found else None), below


def _is_prompt(value: object, field: str) -> bool:
    if field in ("conversations", "messages", "input.messages"):
        return isinstance(value, list)
    turns = value if isinstance(value, list) else ()
    return isinstance(value, str) or (bool(turns) and all(isinstance(t, dict) and _ROLES & t.keys() for t in turns))
