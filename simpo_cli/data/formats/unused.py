"""Fields that a layout does not use, so that no part of a conversation vanishes without a word."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from simpo_cli.data.formats.fields import Records, is_empty, is_turn, leaf, word_set, words_of
from simpo_cli.data.formats.layout import Layout
from simpo_cli.data.formats.names import may_be_label

_METADATA = word_set(
    "id ids idx index uid uuid hash source sources origin url urls link links dataset subset split date time "
    "timestamp created updated modified version language languages lang locale license author authors annotator "
    "annotators worker user userid model models tag tags category categories domain topic score scores rating "
    "ratings reward rewards rank ranks tokens token length len num count turns turn round fold part meta metadata "
    "margin logprob logps logprobs seed name names at by of the in chosen rejected unnamed level"
)
"""Names of these words alone say where a record comes from or how it was measured, not what was asked or answered."""
_LAST = word_set("id ids idx index uid uuid hash url urls link timestamp score scores rating rank length tokens model")
"""A name that ends with one of these says so whatever stands before it."""
_MEDIA = word_set("image images video videos audio audios")
_PARTS = frozenset({"system", "system_prompt", "system_message", "history", "tools", "context"})
_TURNS = frozenset({"turn", "turns"})  # their number is metadata, they themselves are not
_LONGEST_METADATA = 80  # characters; a longer text of words was written to be read
_FEWEST_WORDS = 8
_MOST_FOUND = 50  # in records whose keys are data themselves there is no end of them
_WHOLE = ("messages", "conversations")  # the conversation beside the text of its last question
_PLACE = re.compile(r"\.\d+(?=\.|$)")  # in a list: what stands beside it is named without its place


class UnusedFields:
    """Fields that are neither used nor plain metadata, in the order of the file; empty ones and copies left out.

    Args:
        layout: which fields are used.

    Attributes:
        found: their names, as keys.
    """

    def __init__(self, layout: Layout) -> None:
        used = {layout.prompt, layout.prompt_more, layout.system, layout.tools, *layout.label, *layout.scores}
        if layout.text:
            used.add(f"{layout.chosen}.{layout.text}")
        else:
            used |= {*layout.responses, layout.chosen, layout.rejected}
        used |= {field for _, field in layout.refers} | {*layout.named_by, "chat_template_kwargs"}
        # without a prompt of its own it must be in the turns of the two sides
        used |= {"prompt"} if layout.prompt is None else {layout.history, *_WHOLE}
        # what repeats the prompt or a response is a copy of it
        self._copied = (layout.prompt or "prompt", *(() if layout.is_list else layout.responses))
        self._used = [without_places(field) for field in used if field]
        self._done = {*self._used}
        self._metadata: set[str] = set()  # for speed: a short value of these says nothing
        self.found: dict[str, None] = {}

    def look(self, record: Mapping[str, Any]) -> None:
        """Add those of one more record."""
        for key, value in record.items():
            if key in self._done or (key in self._metadata and _is_short(value)):
                continue
            if len(self.found) >= _MOST_FOUND:
                return
            if any(value == record.get(field) for field in self._copied):
                continue
            self.found.update(dict.fromkeys(_unused_in(key, value, self._used)))
            if key in self.found:
                self._done.add(key)
            elif is_metadata(key) and not any(field.startswith(f"{key}.") for field in self._used):
                self._metadata.add(key)


def unused_fields(records: Records, layout: Layout) -> list[str]:
    """The unused fields of some records."""
    unused = UnusedFields(layout)
    for record in records:
        unused.look(record)
    return list(unused.found)


def _unused_in(name: str, value: Any, used: Sequence[str]) -> Iterator[str]:
    below = [field for field in used if field.startswith(f"{name}.")]
    if name in used or is_empty(value) or value in ([], {}):
        return
    if below:
        for one in value if isinstance(value, list) else [value]:
            for key, inner in one.items() if isinstance(one, dict) else ():
                yield from _unused_in(f"{name}.{key}", inner, below)
    elif not is_metadata(name):
        yield name
    elif isinstance(value, dict):  # what is asked in all the same, under a name of metadata
        asked = [key for key in value if key in _PARTS and not is_empty(value[key]) and value[key] != []]
        yield from (f"{name}.{key}" for key in asked)
    elif isinstance(value, list):
        if name.lower() in _TURNS or is_turn(value[0]):
            yield name
    elif not _is_short(value) and len(str(value).split()) >= _FEWEST_WORDS:
        yield name


def _is_short(value: Any) -> bool:
    return len(value) <= _LONGEST_METADATA if isinstance(value, str) else not isinstance(value, list | dict)


def without_places(name: str) -> str:
    """The name of what stands in a list, whatever its place: votes.by for votes.0.by."""
    return _PLACE.sub("", name)


@lru_cache(maxsize=4096)
def is_metadata(name: str) -> bool:
    """Whether a field says where its record comes from or how it was measured; what may be a label never does."""
    words = [word for word in words_of(leaf(name)) if not word.isdigit()]
    if not words:
        return True  # the index that pandas writes
    if not _MEDIA.isdisjoint(words):
        return False
    return not may_be_label(name) and (words[-1] in _LAST or _METADATA.issuperset(words))
