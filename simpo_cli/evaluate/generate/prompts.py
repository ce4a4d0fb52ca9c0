"""What is asked: prompts of held-out pairs, or of a file, each once, as text and as the tokens that the model gets."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simpo_cli.data.encode import encode_prompt
from simpo_cli.data.file_bytes import FileReceipt
from simpo_cli.data.json_records import whole_value
from simpo_cli.data.load import PairReader
from simpo_cli.data.messages import as_transcript, turns_of
from simpo_cli.data.pair import (
    BadRecord,
    EncodedPair,
    Message,
    PreferencePair,
    RawRecord,
    RecordError,
    kind_of,
    prompt_key,
    prompt_messages,
)
from simpo_cli.data.records import read_records
from simpo_cli.data.sources import Role
from simpo_cli.data.store import prompt_keys_of
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataRecipe, DataSource

NUM_PROMPTS = 100
"""Prompts of held-out pairs that are asked when nobody says how many; of a file all are."""

_FORMS = 'A record is {"prompt": ...}, {"instruction": ...} or {"messages": [...]}, or a text.'
_KEPT = ("uid", "category", "dataset")

Prompt = tuple[Message, ...] | str


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt.

    Attributes:
        key: a hash of its text, by which answers and verdicts find it again.
        turns: the conversation, which ends before the answer.
        ids: the tokens that the model gets, with the header of the answer.
        where: its record.
        labels: what the file says of it and the files for other tools hand on: uid, category, dataset.
        record: all that the file says of it besides the prompt, such as a reference answer.
        is_text: it is a text and no conversation, which a model without a chat template gets as it is.
    """

    key: str
    turns: tuple[Message, ...]
    ids: tuple[int, ...]
    where: str
    labels: dict[str, str] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    is_text: bool = False

    @property
    def text(self) -> str:
        """What a person reads: the user's words, or, where there is more than one turn, the conversation."""
        if len(self.turns) == 1 and self.turns[0].role == "user":
            return self.turns[0].content
        return as_transcript(self.turns).removesuffix("\n\nAssistant:")


@dataclass(frozen=True)
class Questions:
    """The prompts that are asked, each once, and how many are not, by reason."""

    asked: tuple[Question, ...]
    left_out: Counter[str]


def questions_of_pairs(
    pairs: Sequence[EncodedPair], sources: Sequence[DataSource], role: Role, data: DataRecipe, most: int
) -> Questions:
    """The prompts of held-out pairs, the first by hash, so that the choice does not depend on the order of the file.

    Args:
        sources, role: what the pairs were read from, which is read again for the texts.
        most: prompts to ask.

    Raises:
        UserError: every prompt is cut, or a source cannot be read any more.
    """
    _, firsts = np.unique(prompt_keys_of(pairs), return_index=True)
    left_out = +Counter({"asked already": len(pairs) - len(firsts)})
    chosen: dict[str, EncodedPair] = {}
    for pair in map(pairs.__getitem__, firsts.tolist()):
        if pair.prompt_cut:
            left_out["over data.max_prompt_length"] += 1
        elif len(chosen) < most:
            chosen[pair.where] = pair
    if not chosen:
        raise _nothing_left("the held-out pairs", left_out)
    prompts = _texts_of(set(chosen), sources, role, data)
    asked = (
        Question(pair.prompt_key, prompt_messages(prompts[where]), tuple(pair.prompt.tolist()), where)
        for where, pair in chosen.items()
    )
    return Questions(tuple(asked), left_out)


def _texts_of(wanted: set[str], sources: Sequence[DataSource], role: Role, data: DataRecipe) -> dict[str, Prompt]:
    """The prompts of some records, as text; reading stops behind the last of them."""
    found: dict[str, Prompt] = {}
    for pair in PairReader(
        data.sources(sources), role=role, on_bad_record=data.on_bad_record, on_no_signal=data.on_no_signal
    ):
        if pair.where in wanted:
            found[pair.where] = pair.prompt
            if len(found) == len(wanted):
                return found
    raise UserError(
        "changed since its pairs were scored.", "Run again when nothing writes to it.", where=min(wanted - set(found))
    )


class Prompted(NamedTuple):
    """A prompt with its place and what the record holds besides."""

    prompt: Prompt
    where: str
    record: dict[str, Any]


def questions_of_file(path: str, tokenizer: TextTokenizer, data: DataRecipe, most: int | None) -> Questions:
    """The prompts of a file, in its order: AlpacaEval's, Arena-Hard's, or a list of texts, JSON or JSON lines.

    Args:
        most: prompts to ask; None asks all.

    Raises:
        UserError: the file or one of its records is refused, or nothing is left to ask.
    """
    return questions_of(prompts_in(path), path, tokenizer, data, most)


def prompts_in(path: str) -> Iterator[Prompted]:
    """The prompts of a file, as they are read.

    Raises:
        UserError: the file or one of its records is refused.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no file of prompts {path}.", f"Name a JSON file. {_FORMS}")
    records, _ = read_records(path, FileReceipt(path))
    for record in records:
        try:
            prompt, rest = _prompt_of(record)
        except RecordError as error:
            raise UserError(f"{error.problem}.", error.fix, where=record.where) from error
        yield Prompted(prompt, record.where, rest)


def questions_of(
    prompts: Iterable[Prompted], name: str, tokenizer: TextTokenizer, data: DataRecipe, most: int | None
) -> Questions:
    """Prompts as they are asked, each once.

    Args:
        name: what they are called where none is left.
        most: prompts to ask; None asks all.

    Raises:
        UserError: one is refused, or nothing is left to ask.
    """
    left_out: Counter[str] = Counter()
    asked: dict[str, Question] = {}
    for prompt, where, record in prompts:
        key = key_of(prompt)
        if key in asked:
            left_out["asked already"] += 1
            continue
        try:
            ids = encode_prompt(prompt, tokenizer, data)
        except RecordError as error:
            raise UserError(f"{error.problem}.", error.fix, where=where) from error
        if len(ids) > data.max_prompt_length:
            left_out["over data.max_prompt_length"] += 1
        else:
            labels = {name: str(record[name]) for name in _KEPT if isinstance(record.get(name), str | int)}
            turns, is_text = prompt_messages(prompt), isinstance(prompt, str)
            asked[key] = Question(key, turns, tuple(ids), where, labels, record, is_text)
        if len(asked) == most:  # what stands behind the last one may be anything
            break
    if not asked:
        raise _nothing_left(name, left_out)
    return Questions(tuple(asked.values()), left_out)


def key_of(prompt: Prompt) -> str:
    """The hash by which a prompt is known."""
    return prompt_key(PreferencePair(prompt, "", "", ""))


def _nothing_left(name: str, left_out: Counter[str]) -> UserError:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items()))
    return UserError(
        f"no prompt is left to ask in {name} ({reasons or 'none'}).",
        "Raise data.max_prompt_length, or ask others.",
        key="data.max_prompt_length",
    )


def _prompt_of(record: RawRecord | BadRecord) -> tuple[Prompt, dict[str, Any]]:
    """The prompt of a record, and the rest of it."""
    if isinstance(record, BadRecord):  # a file of prompts may also be a list of texts, which no file of pairs is
        try:
            value = whole_value(record.text)
        except (ValueError, RecordError):
            value = None
        if not isinstance(value, str):
            raise RecordError(record.problem, record.fix)
        return _checked(value, "the prompt"), {}
    fields = record.fields
    names = [name for name in ("prompt", "instruction", "messages", "turns") if name in fields]
    if len(names) != 1:
        raise RecordError(f"holds {' and '.join(names) if names else 'no prompt'}", f"Give one of them. {_FORMS}")
    value = fields[names[0]]
    if names == ["turns"]:  # the first form of Arena-Hard and MT-Bench: a list with a turn of the user
        if not isinstance(value, list) or len(value) != 1:
            raise RecordError("turns: more than one question to answer in turn", "Ask each as a prompt of its own.")
        value = value[0].get("content") if isinstance(value[0], dict) else value[0]
    return _checked(value, names[0]), {name: value for name, value in fields.items() if name != names[0]}


def _checked(value: Any, name: str) -> Prompt:
    if isinstance(value, list):
        turns = turns_of(value, name)
        if turns[-1].role == "assistant":
            raise RecordError(f"{name}: the last turn is the assistant's, so nothing is asked", "Leave the answer out.")
        return tuple(turns)
    if not isinstance(value, str):
        raise RecordError(f"{name}: expected text or a list of messages, got {kind_of(value)}", _FORMS)
    if not value.strip():
        raise RecordError(f"{name}: is blank", "Leave the record out.")
    return value
