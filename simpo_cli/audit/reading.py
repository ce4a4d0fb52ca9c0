"""Pairs on their way through the audit: read, grouped by a field, measured by other processes, and put into tokens.

Small data are measured here: a process takes a while to start. The others are spawned, not forked, so it does not
matter which threads run here. They take no module from the current folder and do not import the program that runs here.
Ctrl-C reaches this process alone, and they end when it does, however that happens.
"""

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simpo_cli.audit.findings import SHOWN_ROWS, PairsByCode
from simpo_cli.audit.measures import Counts, TextMeasures, measure
from simpo_cli.data.batches import end_with_the_parent, in_batches, results_in_order
from simpo_cli.data.formats.names import MISSING, get, nearest
from simpo_cli.data.load import PairReader, stopped_by
from simpo_cli.data.pair import (
    BadRecord,
    EncodedPair,
    EncodedPairs,
    PreferencePair,
    RawRecord,
    RecordNote,
    cut_warnings,
    kind_of,
)
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.schema import DataRecipe

if TYPE_CHECKING:
    from concurrent.futures import Future

    from simpo_cli.data.tokenizer import TextTokenizer  # counting words needs no tokenizer library

_BATCH_CHARACTERS = 2**20
MEASURED_HERE = 16_000_000
"""Characters that are measured here before other processes are started."""
MOST_PROCESSES = 4
"""More would wait for the reader."""

_FINDINGS_OF_SCORES = (RecordNote.AGAINST_LABEL, RecordNote.TIED_SCORES, RecordNote.SCORES_AS_TEXT)
"""Notes of the reader that are findings; the other findings are looked for in the texts."""

# Groups

MOST_GROUPS = 200
"""Values that get groups of their own; those behind them share one."""
OTHERS, NONE = "(other values)", "(none)"
_LONGEST_NAME = 80  # characters
_SEARCHED = 100  # pairs in which a field has to turn up


class Groups:
    """The values of a field, such as the data set that a pair came from, numbered as they turn up.

    A name with dots reaches into objects. `names` holds each value as text, by its number.
    """

    def __init__(self, field: str) -> None:
        self.field = field
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._seen, self._is_found = 0, False

    def number_of(self, record: RawRecord) -> int:
        """The number of a record's group; UserError where no record has the field, or its value is a list or object."""
        value: Any = get(record.fields, self.field)
        if isinstance(value, list | dict):
            raise UserError(
                f"--by {self.field}: expected text or a number, got {kind_of(value)}.",
                "Name a field inside it (FIELD.NAME), or another one.",
                where=record.where,
            )
        self._seen += 1
        self._is_found = self._is_found or value is not MISSING
        if self._seen == _SEARCHED:
            self.require_found(record)
        name = NONE if value is MISSING or value is None else str(value)[:_LONGEST_NAME]
        if name not in self._numbers and len(self.names) >= MOST_GROUPS:
            name = OTHERS
        if name not in self._numbers:
            self._numbers[name] = len(self.names)
            self.names.append(name)
        return self._numbers[name]

    def require_found(self, record: RawRecord) -> None:
        """Refuse a field that no record has had, up to this one, whose fields are named."""
        if not self._is_found:
            near = nearest(self.field, record.fields)
            raise UserError(
                f"--by {self.field}: no record has that field.",
                (f"Did you mean {near}? " if near else "") + f"Its fields are {', '.join(list(record.fields)[:20])}.",
                where=record.where,
            )


# Reading


@dataclass(frozen=True, slots=True)
class ReadPair:
    """A pair as it was read."""

    pair: PreferencePair  # as text
    number: int  # its place among all pairs that were read, from 0
    file: int  # the number of the file that it is from
    group: int  # the number of its group, where pairs are grouped by a field
    codes: tuple[str, ...]  # findings that it belongs to


def read_batches(reader: PairReader, groups: Groups | None) -> Iterator[list[ReadPair]]:
    """The pairs of the sources, some hundred together; UserError where a source or record is refused."""
    reads = _read(reader, groups)
    return in_batches(reads, lambda read: read.pair.num_characters, most_characters=_BATCH_CHARACTERS)


def _read(reader: PairReader, groups: Groups | None) -> Iterator[ReadPair]:
    for number, pair in enumerate(reader):
        codes = [note.finding for note in reader.noted if note in _FINDINGS_OF_SCORES]
        if not (pair.chosen.strip() and pair.rejected.strip()):
            codes.append("EMP001")
        elif pair.chosen == pair.rejected:
            codes.append("DUP003")
        assert reader.record is not None, "every pair comes from a record"
        group = 0 if groups is None else groups.number_of(reader.record)
        yield ReadPair(pair, number, len(reader.files) - 1, group, tuple(codes))
    if groups is not None and reader.record is not None:
        groups.require_found(reader.record)


# Measuring


@dataclass(frozen=True, slots=True)
class MeasuredPairs:
    """Pairs of one batch that are measured."""

    pairs: Sequence[ReadPair]  # those of the batch that are, in their order
    codes: Sequence[tuple[str, ...]]  # (k,) all findings that each belongs to
    lengths: Counts  # (k, units, 3) of prompt, chosen and rejected: in words and in characters, or in tokens alone
    texts: TextMeasures  # what the texts of the batch show
    rows: NDArray[np.int64]  # (k,) which rows of `texts` are theirs


@dataclass
class Refused:
    """Records and pairs that are left out: how many, and the first of them with their texts."""

    count: int = 0
    first: list[BadRecord] = field(default_factory=list)

    def add(self, bad: BadRecord) -> None:
        """Take in one more."""
        self.count += 1
        if len(self.first) < SHOWN_ROWS:
            self.first.append(bad)


@dataclass
class Account:
    """What became of pairs on their way to be measured."""

    no_signal: Counter[str] = field(default_factory=Counter)  # pairs that have no tokens to train on, by reason
    left_out: PairsByCode = field(default_factory=PairsByCode)  # numbers of pairs that are not measured, by code
    refused: Refused = field(default_factory=Refused)  # pairs that the template or the rules refuse
    no_end: list[int] = field(default_factory=lambda: [0, 0])  # chosen and rejected responses without an end token
    num_cut: int = 0  # how many of these the length limit has cut
    details: dict[str, str] = field(default_factory=dict)  # a sentence about these data for findings, by code


MeasuredBatch = tuple[list[ReadPair], TextMeasures]


def measured_batches(batches: Iterator[list[ReadPair]], *, own: tuple[str, ...] | None) -> Iterator[MeasuredBatch]:
    """Each batch with the measures of its texts, in order. Close it, so that no process is left.

    Once there is much to measure, processes do it, one on each core and at most four.

    Raises:
        UserError: a process was killed, or none can be started; or as the batches do when they are read.
    """
    num_processes = min(_num_cores(), MOST_PROCESSES)
    num_characters = 0
    for batch in batches:
        yield batch, measure([read.pair for read in batch], own=own)
        num_characters += sum(read.pair.num_characters for read in batch)
        if num_characters >= MEASURED_HERE and num_processes > 1 and sys.executable:
            break
    else:
        return
    import multiprocessing  # which small data do not need
    from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor

    with _spawning():
        context = multiprocessing.get_context("spawn")
        processes = ProcessPoolExecutor(num_processes, context, initializer=end_with_the_parent)

    def submit(batch: list[ReadPair]) -> "Future[TextMeasures]":
        try:
            with _spawning():
                return processes.submit(measure, [read.pair for read in batch], own=own)
        except OSError as error:
            raise UserError(
                f"a process that measures texts cannot be started: {error.strerror or error}.",
                "Free some memory, or raise the limit of processes (ulimit -u).",
                exit_code=ExitCode.ENVIRONMENT,
            ) from error

    try:
        # two batches a process are on their way, so that none of them waits for this one
        yield from results_in_order(((batch, batch) for batch in batches), submit, most_ahead=2 * num_processes)
    except BrokenProcessPool as error:
        raise UserError(
            "a process that measures texts was killed.",
            "Was memory short? Free some, or give the command a single core, such as with taskset -c 0.",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error
    finally:
        processes.shutdown(cancel_futures=True)


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _spawning() -> Iterator[None]:
    """What starts here looks for no module in the current folder, runs no program again, and does not see Ctrl-C."""
    before, program = os.environ.get("PYTHONSAFEPATH"), sys.modules["__main__"]
    os.environ["PYTHONSAFEPATH"] = "1"
    sys.modules["__main__"] = ModuleType("__main__")  # else it is imported there, guarded or not
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        sys.modules["__main__"] = program
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


# In tokens

FEW_TOKENS = 4

_CODE_OF_REASON = {"responses identical after the cut": "TRU004", "over the length limits": "TRU005"}
_CODE_OF_COUNT = {"special token kept as text": "TOK001", "second BOS left out": "TOK002"}


def in_tokens(
    batches: Iterator[MeasuredBatch], tokenizer: "TextTokenizer", data: DataRecipe, account: Account
) -> Iterator[MeasuredPairs]:
    """The pairs that training would see, with their lengths; the others go into the account.

    Raises:
        UserError: a pair is refused where the recipe stops at such.
    """
    from simpo_cli.data.encode import encode_batches

    ends, total = tokenizer.end_ids_under(data.chat_template_kwargs), EncodedPairs()
    for (texts, usable, usable_rows), encoded in encode_batches(_with_signal(batches, account), tokenizer, data):
        if encoded.bad and data.on_bad_record == "error":
            raise stopped_by(encoded.bad)
        for bad in encoded.bad:
            account.refused.add(bad)
        account.no_signal.update(encoded.dropped)
        for limit, counts in encoded.needed.items():
            total.needed[limit] += counts
        reasons = {where: reason for reason in encoded.dropped for where in encoded.places[reason]}
        noted = [(code, set(encoded.places.get(what, ()))) for what, code in _CODE_OF_COUNT.items()]
        reads, codes, lengths, rows = [], [], [], []
        left = iter(encoded.pairs)
        pair = next(left, None)
        for read, row in zip(usable, usable_rows, strict=True):
            where = read.pair.where
            if pair is None or pair.where != where:
                code = _CODE_OF_REASON.get(reasons[where], "EMP002") if where in reasons else "FMT001"
                account.left_out.add(code, read.number, where)
                continue
            of_tokens = [*_codes_in_tokens(pair, ends, account), *(code for code, places in noted if where in places)]
            reads.append(read)
            codes.append((*read.codes, *texts.codes[row], *of_tokens))
            lengths.append((len(pair.prompt), len(pair.chosen), len(pair.rejected)))
            rows.append(row)
            pair = next(left, None)
        counts_of_tokens = np.array(lengths, dtype=np.int32).reshape(-1, 1, 3)
        yield MeasuredPairs(reads, codes, counts_of_tokens, texts, np.array(rows, dtype=np.int64))
    sentences = {limit: f"{sentence}." for limit, sentence in cut_warnings(total.needed, data).items()}
    prompts, answers = (sentences.get(limit, "") for limit in ("max_prompt_length", "max_length"))
    account.details |= {"TRU001": answers, "TRU002": answers, "TRU003": prompts}
    account.details["TRU005"] = f"{prompts} {answers}".strip()


_Usable = tuple[TextMeasures, list[ReadPair], list[int]]


def _with_signal(batches: Iterator[MeasuredBatch], account: Account) -> Iterator[tuple[_Usable, list[PreferencePair]]]:
    """Batches of pairs that have a signal as text, and which of the batch these are; the reader counted the others."""
    for reads, texts in batches:
        rows = []
        for row, read in enumerate(reads):
            code = next((code for code in read.codes if code in ("EMP001", "DUP003")), None)
            if code is None:
                rows.append(row)
            else:
                account.left_out.add(code, read.number, read.pair.where)
        usable = [reads[row] for row in rows]
        yield (texts, usable, rows), [read.pair for read in usable]


def _codes_in_tokens(pair: EncodedPair, ends: frozenset[int], account: Account) -> Iterator[str]:
    if pair.chosen_cut or pair.rejected_cut:
        yield "TRU001" if pair.chosen_cut and pair.rejected_cut else "TRU002"
    if pair.prompt_cut:
        yield "TRU003"
    lost = [int(side[-1]) not in ends for side in (pair.chosen, pair.rejected)]
    account.no_end[0] += lost[0]
    account.no_end[1] += lost[1]
    account.num_cut += (lost[0] and pair.chosen_cut) + (lost[1] and pair.rejected_cut)
    if any(lost):
        yield "EOS001"
    if min(len(pair.chosen), len(pair.rejected)) < FEW_TOKENS:
        yield "EMP003"
