"""What the readers hand on: a record with its place, or why it could not be read."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
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

    def refused(self, error: "RecordError") -> "BadRecord":
        """The record as one that is malformed."""
        return BadRecord(self.where, error.problem, error.fix, self.shown())


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot become a pair: its place, what is wrong, how to mend it, and the record itself as text."""

    where: str
    problem: str
    fix: str
    text: str


Records = Iterator[RawRecord | BadRecord]


class RecordNote(StrEnum):
    """What is worth telling of single records and stops nothing; the text, behind a count, is its name in documents.

    Attributes:
        finding: the code under which `simpo stats` shows it; empty where a note is all that tells it.
    """

    finding: str

    def __new__(cls, text: str, finding: str = "") -> "RecordNote":
        note = str.__new__(cls, text)
        note._value_, note.finding = text, finding
        return note

    AGAINST_LABEL = "scores order the pair against its label", "SCR001"
    TIED_SCORES = "tied scores", "SCR002"
    SCORES_AS_TEXT = "scores written as text", "SCR003"
    NUL = "NUL characters in texts", "CHR001"
    FURTHER_TURNS = (
        "dialogues with a response that goes on with turns of the human, as where they part before the end",
        "TPL002",
    )
    OTHER_PROMPT = "prompts written otherwise than in the turns, by case or white space; the turns are used"
    ENDS_WITH_ANSWER = "prompts that end with an answer, which the responses follow as turns of their own"
    JOINED_TURNS = "prompts with two turns of the user in a row, joined by an empty line"
    MISSING_WORD = "pairs with the word for a missing value as a text (NaN, None, null) (EMP004)", "EMP004"
    END_TOKEN = "pairs with an end token spelled out in a response (EOS002)", "EOS002"
    MESSAGE_AS_JSON = "pairs whose responses are JSON of messages (FMT002)", "FMT002"
    REPEATED_PROMPT = "pairs whose responses both repeat the prompt (TPL003)", "TPL003"
    OTHER_TEMPLATE = "pairs with another template's markers (TPL004)", "TPL004"


def record_note(text: str) -> RecordNote | None:
    """The note that a document names; None for what is said of a file as a whole, in which its name stands."""
    return next((note for note in RecordNote if note == text), None)


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
