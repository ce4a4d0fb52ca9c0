"""The forms a preference pair has on its way to the model, record, text and tokens, and what became of many pairs."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpo_cli.recipe.schema import DataRecipe

# What the readers hand on: a record with its place, or why it could not be read

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

    def refused(self, error: "RecordError") -> "BadRecord":
        """The record as one that is malformed."""
        text = self.text if self.text is not None else json.dumps(self.fields, ensure_ascii=False, default=str)
        return error.at(self.where, text)


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

    def at(self, where: str, text: str) -> BadRecord:
        """The record at a place as one that is malformed; of its text the beginning is kept."""
        return BadRecord(where, self.problem, self.fix, text[:MAX_KEPT_TEXT])


_KINDS: tuple[tuple[type | UnionType, str], ...] = (
    (NoneType, "null"),
    (bool, "true or false"),  # before the numbers, of which it is one
    (int | float, "number"),
    (str, "text"),
    (list | tuple, "list"),
    (dict, "object"),
)


def kind_of(value: object) -> str:
    """The name of a JSON value's kind, as messages say it."""
    return next((name for kind, name in _KINDS if isinstance(value, kind)), type(value).__name__)


# Text and tokens


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; two are equal if they say the same.

    Attributes:
        role: `system`, `user`, `assistant` or `tool` (tool results).
        content: all that the turn says, as text: reasoning, content, and calls as JSON, one a line.
        fields: JSON of the message as the record holds it, its role aside, where that is more than a text: content,
            tool_calls, tool_call_id, name, reasoning_content and whatever else; otherwise empty.
    """

    role: str
    content: str
    fields: str = field(default="", compare=False)

    def as_record(self) -> dict[str, Any]:
        """The message as records hold it and templates read it."""
        return {"role": self.role, **(json.loads(self.fields) if self.fields else {"content": self.content})}


def prompt_messages(prompt: tuple[Message, ...] | str) -> tuple[Message, ...]:
    """The prompt as turns: plain text is what a user says. Two prompts are the same if their turns are."""
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def last_of_user(prompt: tuple[Message, ...] | str) -> str:
    """What the user says last in a prompt; empty where there is no turn of a user."""
    return next((turn.content for turn in reversed(prompt_messages(prompt)) if turn.role == "user"), "")


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One prompt with the response that people preferred and the one it beat, as text; nothing is stripped."""

    prompt: tuple[Message, ...] | str  # a conversation that ends before the response, or plain text as in the record
    chosen: str  # with reasoning or calls, all of it as text
    rejected: str
    where: str  # the record's place for messages: `prefs.jsonl:17` (line, JSON lines) or `prefs.json, record 17`
    tools: str | None = None  # JSON text of the tools that the conversation may call
    template_kwargs: str | None = None  # JSON text of the record's own variables for the chat template
    chosen_fields: str = field(default="", compare=False)  # the response's message, as `Message.fields`
    rejected_fields: str = field(default="", compare=False)

    @property
    def answers(self) -> tuple[Message, Message]:
        """Chosen and rejected response as turns."""
        chosen = Message("assistant", self.chosen, self.chosen_fields)
        return chosen, Message("assistant", self.rejected, self.rejected_fields)

    @property
    def num_characters(self) -> int:
        """Characters of the prompt's turns and the two responses."""
        asked = [self.prompt] if isinstance(self.prompt, str) else [turn.content for turn in self.prompt]
        return sum(map(len, (*asked, self.chosen, self.rejected)))


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """One pair as token ids, cut to the recipe's lengths; what the model sees."""

    prompt: NDArray[np.int32]  # (num_prompt_tokens,) seen and not scored
    chosen: NDArray[np.int32]  # (num_chosen_tokens,) all of them scored, never empty
    rejected: NDArray[np.int32]  # (num_rejected_tokens,) all of them scored, never empty
    prompt_key: str  # a hash of the prompt's text: pairs of one prompt share it (hold-out and intervals go by prompt)
    where: str  # the record's place, for messages
    prompt_cut: bool = False  # whether the length limits took tokens away
    chosen_cut: bool = False
    rejected_cut: bool = False
    pair_key: str = "0" * 32  # a digest of the three texts, by which two runs know their pairs; zeros if not given

    @property
    def num_tokens(self) -> int:
        """Tokens that the pair holds when its prompt is stored once."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


def prompt_key(pair: PreferencePair) -> str:
    """A hash of the prompt's text; a string and the same string as one user message are the same prompt."""
    text = json.dumps([[turn.role, turn.content] for turn in prompt_messages(pair.prompt)], ensure_ascii=False)
    return _digest(text)


def pair_key(pair: PreferencePair) -> str:
    """32 hex digits that tell a pair by its texts: 16 of prompt and chosen, then 16 of prompt and rejected.

    So a pair whose labels are swapped has the same halves in the other order.
    """
    prompt = prompt_key(pair)
    return "".join(_digest(f"{prompt} {response}") for response in (pair.chosen, pair.rejected))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


MANY = 0.05
"""Share of pairs above which a cut is worth a warning; the limit that is named leaves no more than this share cut."""
LIMITS = {"max_prompt_length": "their prompt", "max_length": "an answer"}


@dataclass
class EncodedPairs:
    """What became of the pairs.

    Attributes:
        pairs: those that can be trained on or scored, in their order.
        dropped: pairs without signal, by reason.
        bad: pairs that the template or the rules refuse, each with the reason.
        counts: pairs with a property worth telling: `prompt cut`, `chosen cut`, `rejected cut`, `response of one
            token`, `tokenized apart`, `no end token`, `second BOS left out`, `special token kept as text`, `answer not
            as the template writes it`, `turns that the template writes otherwise once they are answered`, `tools
            unknown to the template` (it has no place for their definitions, in training as later in use), `reasoning
            that the template does not write` and others of this form.
        needed: what the pairs would need to stay whole, of those that are not refused: `max_prompt_length` and
            `max_length`, each with the number of pairs by tokens, rounded up to 64; 0 where they fit.
        places: where the pairs of each reason in `dropped` and each property in `counts` come from.
    """

    pairs: list[EncodedPair] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    bad: list[BadRecord] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    needed: dict[str, Counter[int]] = field(default_factory=lambda: {name: Counter() for name in LIMITS})
    places: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add_counts(self, other: "EncodedPairs") -> None:
        """Count what became of further pairs, without the pairs and their places."""
        self.dropped += other.dropped
        self.bad += other.bad
        self.counts += other.counts
        for limit, counts in other.needed.items():
            self.needed[limit] += counts

    def refuse(self, pair: PreferencePair, error: RecordError) -> None:
        """Leave out one pair that is refused; its texts go into the file of rejected records."""
        prompt = pair.prompt if isinstance(pair.prompt, str) else [[turn.role, turn.content] for turn in pair.prompt]
        texts = {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        self.bad.append(error.at(pair.where, json.dumps(texts, ensure_ascii=False)))

    def need(self, limit: str, tokens: int, most: int) -> None:
        """One more pair needs so many tokens under a limit that allows for `most`."""
        self.needed[limit][0 if tokens <= most else tokens + -tokens % 64] += 1

    def drop(self, reason: str, where: str) -> None:
        """Leave out one pair without signal."""
        self.dropped[reason] += 1
        self.places[reason].append(where)

    def count(self, what: str, where: str) -> None:
        """One more pair with a property worth telling."""
        self.counts[what] += 1
        self.places[what].append(where)


def cut_warnings(needed: Mapping[str, Counter[int]], data: DataRecipe, longest: int | None = None) -> dict[str, str]:
    """A sentence for each limit that is too low for more than a twentieth of the pairs; empty where none is.

    Args:
        longest: most tokens that the model takes; None where that is not known.
    """
    wanted = {name: limit for name in LIMITS if (limit := _limit(needed[name]))}
    settings = dict(wanted)
    if "max_prompt_length" in wanted:  # longer prompts take room that the answers then lack
        more = wanted["max_prompt_length"] - data.max_prompt_length
        settings["max_length"] = more + wanted.get("max_length", data.max_length)
    fix = " ".join(f"data.{name}={value}" for name, value in settings.items()) + " keeps 95 % whole"
    if longest is not None and settings.get("max_length", 0) > longest:
        fix = fix.replace("keeps", "would keep") + f", and the model takes {longest:,} tokens"
    how = "cut at" if data.overlong == "truncate" else "over"
    shares = {name: 100 * (1 - needed[name][0] / needed[name].total()) for name in wanted}
    return {
        name: f"{share:.0f} % of pairs have {LIMITS[name]} {how} data.{name}={getattr(data, name)}: {fix}"
        for name, share in shares.items()
    }


def _limit(needed: Counter[int]) -> int:
    """The smallest limit that leaves few pairs cut; 0 where few are."""
    above, most = 0, MANY * needed.total()
    for tokens in sorted(needed, reverse=True):
        above += needed[tokens]
        if above > most:
            return tokens
    return 0
