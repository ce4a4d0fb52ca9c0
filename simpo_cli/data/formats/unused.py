"""Fields that a layout does not use, so that no part of a conversation vanishes without a word."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from simpo_cli.data.formats.fields import word_set, words_of
from simpo_cli.data.formats.layout import Layout
from simpo_cli.data.formats.names import may_be_label
from simpo_cli.data.formats.preferred import is_empty

_METADATA = word_set(
    "id ids idx index uid uuid hash source sources origin url urls link links dataset subset split date time "
    "timestamp created updated modified version language languages lang locale license author authors annotator "
    "annotators worker user userid model models tag tags category categories domain topic score scores rating "
    "ratings reward rewards rank ranks tokens token length len num count turns turn round fold part meta metadata "
    "margin logprob logps logprobs seed name names at by of the in chosen rejected"
)
"""Names of these words alone say where a record comes from or how it was measured, not what was asked or answered."""
_LAST = word_set("id ids idx index uid uuid hash url urls link timestamp score scores rating rank length tokens model")
"""A name that ends with one of these says so whatever stands before it."""
_MEDIA = word_set("image images video videos audio audios")
_WHOLE = ("messages", "conversations")  # the conversation beside the text of its last question
_PLACE = re.compile(r"\.\d+(?=\.|$)")  # in a list: what stands beside it is named without its place


def unused_fields(records: Sequence[Mapping[str, Any]], layout: Layout) -> list[str]:
    """Fields that are neither used nor plain metadata, in the order of the file; empty ones and copies left out."""
    used = {layout.prompt, layout.prompt_more, layout.system, layout.tools, *layout.label, *layout.scores}
    used |= {f"{layout.chosen}.{layout.text}"} if layout.text else {*layout.responses, layout.chosen, layout.rejected}
    used |= {field for _, field in layout.refers} | {*layout.named_by}
    used |= {"chat_template_kwargs", "prompt"}  # without a prompt of its own it must be in the turns of the two sides
    used |= {layout.history, *_WHOLE} if layout.prompt is not None else set()
    paths = [without_places(field) for field in used if field]
    found: dict[str, None] = {}
    for record in records:
        kept = [record[field] for field in layout.responses if field in record and not layout.is_list]
        for key, value in record.items():
            if isinstance(key, str) and value not in kept:
                found.update(dict.fromkeys(_unused_in(key, value, paths)))
    return list(found)


def _unused_in(name: str, value: Any, used: Sequence[str]) -> Iterable[str]:
    if name in used or is_empty(value) or value in ([], {}) or is_metadata(name):
        return
    below = [field for field in used if field.startswith(f"{name}.")]
    if not below:
        yield name
    for one in (value if isinstance(value, list) else [value]) if below else ():
        if isinstance(one, dict):
            for key, inner in one.items():
                yield from _unused_in(f"{name}.{key}", inner, below)


def without_places(name: str) -> str:
    """The name of what stands in a list, whatever its place: votes.by for votes.0.by."""
    return _PLACE.sub("", name)


class UnusedFields:
    """The unused fields of a whole file, also those that no record fills before a late one does.

    Args:
        layout: what was decided from the first records.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._seen: set[Any] = set()
        self._found = dict.fromkeys(layout.unused)

    def note(self, record: Mapping[str, Any]) -> None:
        """Look at one more record."""
        if new := [key for key, value in record.items() if key not in self._seen and not is_empty(value)]:
            self._seen.update(new)
            self._found.update(dict.fromkeys(unused_fields([record], self._layout)))

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, in the order of the file."""
        return tuple(self._found)


def is_metadata(name: str) -> bool:
    """Whether a field says where its record comes from or how it was measured; what may be a label never does."""
    words = [word for word in words_of(name.rpartition(".")[2]) if not word.isdigit()]
    if not words:
        return True  # the index that pandas writes
    if not _MEDIA.isdisjoint(words):
        return False
    return not may_be_label(name) and (words[-1] in _LAST or _METADATA.issuperset(words))
