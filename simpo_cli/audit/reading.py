"""Pairs on their way through the audit: read, told apart by a field, and measured in other processes meanwhile.

What comes back from these is in the order of the batches. Small data are measured here: a process takes a while to
start. The others are started by name, not forked, so it does not matter which threads run here, and speak through
pipes: each is sent a batch and answers with its measures. They end when their input does, so none is left behind
however this process ends, and are in a process group of their own, so that Ctrl-C in a terminal reaches this process
alone, which then ends them.
"""

import os
import pickle
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from simpo_cli.audit.findings import SHOWN_ROWS, Marked
from simpo_cli.audit.measures import Counts, TextMeasures, measure
from simpo_cli.data.formats.fields import MISSING, get, nearest
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import PreferencePair
from simpo_cli.data.raw import BadRecord, RawRecord, RecordNote, kind_of
from simpo_cli.errors import ExitCode, UserError

MOST_GROUPS = 200
"""Values that are told apart; what comes behind them is one group."""
OTHERS, NONE = "(other values)", "(none)"
_LONGEST_NAME = 80  # characters
_LOOKED_AT = 100  # pairs in which a field has to turn up


class Groups:
    """The values of a field, numbered as they turn up.

    Args:
        field: its name; one with dots reaches into objects.

    Attributes:
        names: each value as text, by its number.
    """

    def __init__(self, field: str) -> None:
        self.field = field
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._seen, self._is_found = 0, False

    def number_of(self, record: RawRecord) -> int:
        """The number of a record's group.

        Raises:
            UserError: none of the first records has the field, or its value is a list or an object.
        """
        value: Any = get(record.fields, self.field)
        if isinstance(value, list | dict):
            raise UserError(
                f"--by {self.field}: expected text or a number, got {kind_of(value)}.",
                "Name a field inside it (FIELD.NAME), or another one.",
                where=record.where,
            )
        self._seen += 1
        self._is_found = self._is_found or value is not MISSING
        if self._seen == _LOOKED_AT:
            self.require_found(record)
        name = NONE if value is MISSING or value is None else str(value)[:_LONGEST_NAME]
        if name not in self._numbers:
            if len(self.names) >= MOST_GROUPS:
                name = OTHERS
            if name not in self._numbers:
                self._numbers[name] = len(self.names)
                self.names.append(name)
        return self._numbers[name]

    def require_found(self, record: RawRecord) -> None:
        """Refuse a field that no record has had.

        Args:
            record: the last one, whose fields are named.
        """
        if not self._is_found:
            near = nearest(self.field, record.fields)
            raise UserError(
                f"--by {self.field}: no record has that field.",
                (f"Did you mean {near}? " if near else "") + f"Its fields are {', '.join(list(record.fields)[:20])}.",
                where=record.where,
            )


_BATCH = 512  # pairs that are measured and tokenized together: enough to keep processes and threads busy
_BATCH_CHARACTERS = 2**20

_SCORES = (RecordNote.AGAINST_LABEL, RecordNote.TIED_SCORES, RecordNote.SCORES_AS_TEXT)
"""Notes of the reader that are findings; the other findings are looked for in the texts."""


@dataclass(frozen=True, slots=True)
class ReadPair:
    """A pair as it was read.

    Attributes:
        pair: as text.
        number: its place among all pairs that were read, from 0.
        file: the number of the file that it is from.
        group: the number of its group, where pairs are told apart by a field.
        codes: findings that it belongs to.
    """

    pair: PreferencePair
    number: int
    file: int
    group: int
    codes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MeasuredPairs:
    """Pairs of one batch that are measured.

    Attributes:
        pairs: those of the batch that are, in their order.
        codes: (k,) all findings that each belongs to.
        lengths: (k, units, 3) of prompt, chosen and rejected: in words and in characters, or in tokens alone.
        texts: what the texts of the batch show.
        rows: (k,) which rows of `texts` are theirs.
    """

    pairs: Sequence[ReadPair]
    codes: Sequence[tuple[str, ...]]
    lengths: Counts
    texts: TextMeasures
    rows: NDArray[np.int64]


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
    """What became of pairs on their way to be measured.

    Attributes:
        no_signal: pairs that have no tokens to train on, by reason.
        left_out: the numbers of the pairs that are not measured, by code.
        refused: pairs that the template or the rules refuse; how many, and the first of them.
        no_end: chosen and rejected responses without an end token.
        num_cut: how many of these the length limit has cut.
        details: what is said more of some findings, by their code.
    """

    no_signal: Counter[str] = field(default_factory=Counter)
    left_out: Marked = field(default_factory=Marked)
    refused: Refused = field(default_factory=Refused)
    no_end: list[int] = field(default_factory=lambda: [0, 0])
    num_cut: int = 0
    details: dict[str, str] = field(default_factory=dict)


def read_batches(reader: PairReader, groups: Groups | None) -> Iterator[list[ReadPair]]:
    """The pairs of the sources, some hundred together.

    Args:
        reader: gives the pairs.
        groups: which group of pairs each belongs to; None where pairs are told apart by their files alone.

    Raises:
        UserError: a source or record is refused.
    """
    batch: list[ReadPair] = []
    held = 0
    for number, pair in enumerate(reader):
        codes = [note.finding for note in reader.noted if note in _SCORES]
        if _is_blank(pair.chosen) or _is_blank(pair.rejected):
            codes.append("EMP001")
        elif pair.chosen == pair.rejected:
            codes.append("DUP003")
        assert reader.record is not None, "every pair comes from a record"
        group = 0 if groups is None else groups.number_of(reader.record)
        batch.append(ReadPair(pair, number, len(reader.files) - 1, group, tuple(codes)))
        held += pair.num_characters
        if len(batch) == _BATCH or held >= _BATCH_CHARACTERS:
            yield batch
            batch, held = [], 0
    if groups is not None and reader.record is not None:
        groups.require_found(reader.record)
    if batch:
        yield batch


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


MEASURED_HERE = 16_000_000
"""Characters that are measured here before other processes are started."""
MOST_PROCESSES = 4
"""More would wait for the reader."""

_PIPE_BYTES = 1 << 20  # a batch: threads that write and read it by pieces would wait for this one again and again
_SERVE = f"import {__name__}; {__name__}.serve"  # what the others run

Measured = tuple[list[ReadPair], TextMeasures]


class MeasuringProcesses:
    """Measures batches of pairs; a context, behind whose end no process is left.

    Args:
        own: as for `measure`.
        most: processes to start at most, once there is much to measure; None for as many as there are cores.
    """

    def __init__(self, *, own: tuple[str, ...] | None, most: int | None = None) -> None:
        self._own = own
        cores = min(_num_cores(), MOST_PROCESSES) if most is None else most
        self._most = cores if cores > 1 and sys.executable else 0
        self._started: list[_Process] = []
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._threads = ThreadPoolExecutor(max_workers=max(1, self._most))  # one waits for each process

    def __enter__(self) -> "MeasuringProcesses":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self._started:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._started:
            process.close()

    def measured(self, batches: Iterator[list[ReadPair]]) -> Iterator[Measured]:
        """Each batch with the measures of its texts, in order.

        Raises:
            UserError: a process was ended by somebody else, or none can be started; or as the batches do when they are
                read.
        """
        num_characters_seen = 0
        for batch in batches:
            yield batch, measure([read.pair for read in batch], own=self._own)
            num_characters_seen += sum(read.pair.num_characters for read in batch)
            if num_characters_seen >= MEASURED_HERE and self._most:
                break
        yield from self._measured_elsewhere(batches)

    def _measured_elsewhere(self, batches: Iterator[list[ReadPair]]) -> Iterator[Measured]:
        """As `measured`; two batches a process are on their way, so that none of them waits for this one."""
        waiting: deque[tuple[list[ReadPair], Future[TextMeasures]]] = deque()
        stopped: UserError | None = None
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                break
            except UserError as error:  # what came before it is looked at first, as without processes
                stopped = error
                break
            if not self._started:
                self._start()
            waiting.append((batch, self._threads.submit(self._send, [read.pair for read in batch])))
            if len(waiting) > 2 * self._most:
                yield _first(waiting)
        while waiting:
            yield _first(waiting)
        if stopped is not None:
            raise stopped

    def _start(self) -> None:
        for _ in range(self._most):
            process = _Process(own=self._own)
            self._started.append(process)
            self._idle.put(process)

    def _send(self, pairs: Sequence[PreferencePair]) -> TextMeasures:
        process = self._idle.get()
        try:
            return process.measure(pairs)
        finally:
            self._idle.put(process)


def _first(waiting: deque[tuple[list[ReadPair], Future[TextMeasures]]]) -> Measured:
    batch, measures = waiting.popleft()
    return batch, measures.result()


def _num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Process:
    """Another process that measures one batch at a time."""

    def __init__(self, *, own: tuple[str, ...] | None) -> None:
        # the same modules as here, and none from the current folder unless this process takes them from there too
        path = os.pathsep.join(filter(None, sys.path))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"{_SERVE}(own={own!r})"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pipesize=_PIPE_BYTES,
                env={**os.environ, "PYTHONPATH": path},
                process_group=0,
            )
        except OSError as error:
            raise UserError(
                f"a process that measures texts cannot be started: {error.strerror or error}.",
                "Free some memory, or raise the limit of processes (ulimit -u).",
                exit_code=ExitCode.ENVIRONMENT,
            ) from error
        self._is_ended = False

    def measure(self, pairs: Sequence[PreferencePair]) -> TextMeasures:
        """Send pairs and wait for their measures."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(pickle.dumps(pairs, pickle.HIGHEST_PROTOCOL))
            self._process.stdin.flush()
            answer: TextMeasures = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError, ValueError) as error:
            code = self._process.wait()
            if self._is_ended or code >= 0:
                raise RuntimeError("a process that measures texts has ended before its work") from error
            raise UserError(
                f"a process that measures texts was killed (signal {-code}).",
                "Was memory short? Free some, or give the command a single core, such as with taskset -c 0.",
                exit_code=ExitCode.ENVIRONMENT,
            ) from error
        return answer

    def kill(self) -> None:
        """End the process, whatever it is doing, and wait until it is gone."""
        self._is_ended = True
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let go of the pipes, when nobody reads from them any more."""
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what was not sent yet
                assert pipe is not None
                pipe.close()


def serve(*, own: tuple[str, ...] | None) -> None:
    """Measure the batches that come in, until none does: what the other processes run."""
    answers: BinaryIO = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody else writes between the answers
    while True:
        try:
            pairs = pickle.load(sys.stdin.buffer)
        except (EOFError, pickle.UnpicklingError):  # whoever asked is gone, perhaps in the middle of it
            return
        try:
            answers.write(pickle.dumps(measure(pairs, own=own), pickle.HIGHEST_PROTOCOL))
            answers.flush()
        except BrokenPipeError:  # whoever asked is gone
            os._exit(0)
