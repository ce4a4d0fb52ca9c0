"""What the readers hand on: a record with its place, or why it could not be read."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

MAX_RECORD_BYTES = 32 * 2**20
"""A record over this size is no conversation; reading it would take memory without bound."""
MAX_KEPT_TEXT = 100_000
"""Characters of a bad record that are kept for `rejected.jsonl`."""
MAX_KEPT_PLACES = 100
"""Places that are kept for each thing that is counted."""


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One object of a file, its values not looked at yet.

    Attributes:
        where: its place: `prefs.jsonl:17` (a line) or `prefs.json, record 17`.
        fields: the object.
        text: the record as the file has it, or None where the file is not text.
    """

    where: str
    fields: dict[str, Any]
    text: str | None = None

    def shown(self) -> str:
        """The record as text, for the file of rejected records."""
        text = self.text if self.text is not None else json.dumps(self.fields, ensure_ascii=False, default=str)
        return text[:MAX_KEPT_TEXT]


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot become a pair: its place, what is wrong, how to mend it, and the record itself as text."""

    where: str
    problem: str
    fix: str
    text: str


@dataclass
class FileReceipt:
    """What is known of a source once it has been read.

    Attributes:
        path: as the person named it.
        identity: sha256 of the file's bytes, or the commit of a hub data set.
        size: bytes on disk; 0 for the hub.
        warnings: things worth telling that stop nothing, with their number.
    """

    path: str
    identity: str = ""
    size: int = 0
    warnings: Counter[str] = field(default_factory=Counter)


@dataclass
class Tally:
    """Things counted by name, with the places of the first of each."""

    counts: Counter[str] = field(default_factory=Counter)
    places: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, what: str, where: str) -> None:
        """One more of `what`."""
        self.counts[what] += 1
        if len(self.places[what]) < MAX_KEPT_PLACES:
            self.places[what].append(where)

    def update(self, other: "Tally") -> None:
        """Take in what another has counted, its places first."""
        self.counts.update(other.counts)
        for what, places in other.places.items():
            self.places[what] = [*places, *self.places[what]][:MAX_KEPT_PLACES]


class RecordError(Exception):
    """Why one record is refused; the caller knows the record's place and text.

    Args:
        problem: what is wrong, beginning with the field: `chosen[1].content: expected text, got number`.
        fix: how to mend it.
    """

    def __init__(self, problem: str, fix: str) -> None:
        self.problem, self.fix = problem, fix
        super().__init__(problem)


def kind_of(value: object) -> str:
    """The name of a JSON value's kind, as messages say it."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "number"
        case str():
            return "text"
        case list() | tuple():
            return "list"
        case dict():
            return "object"
        case _:
            return type(value).__name__
