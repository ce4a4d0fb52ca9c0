"""Texts measured in other processes, while this one reads on; what comes back is in the order of the batches.

Small data are measured here: a process takes a while to start. The others are started by name, not forked, so it does
not matter which threads run here, and speak through pipes: each is sent a batch and answers with its measures. They end
when their input does, so none is left behind however this process ends, and are in a process group of their own, so
that Ctrl-C in a terminal reaches this process alone, which then ends them.
"""

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import BinaryIO

from simpo_cli.audit.measures import TextMeasures, measure
from simpo_cli.audit.reading import ReadPair
from simpo_cli.data.pair import PreferencePair
from simpo_cli.errors import ExitCode, UserError

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
