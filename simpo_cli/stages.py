"""What is being done at this moment, and how far it is: work says so here, and whoever watches shows it.

Reading, loading, scoring and saving may take minutes each. A function that does such work opens a stage, and knows
nothing of terminals; screen and log ask for `in_words()` now and then, from a thread of their own.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from simpo_cli.formatting import duration, thousands

SECONDS_OF_SILENCE = 25.0
"""How long a log may say nothing."""

Part = TypeVar("Part", bound=Sized)


class Stage:
    """One piece of work that takes a while.

    Args:
        name: what is done, such as `scoring pairs`.
        total: of how many, where that is known.
        clock: seconds from any fixed moment.
    """

    def __init__(self, name: str, total: int | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.total, self.done = name, total, 0
        self._clock = clock
        self._started_at = clock()

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count

    def advancing(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The parts of one attempt at all of it, such as micro-batches; each counts when the next one is asked for."""
        self.done = 0
        for part in parts:
            yield part
            self.advance(len(part))

    def in_words(self) -> str:
        """scoring pairs, 120 of 500, 0:32 left"""
        seconds, done, total = self._clock() - self._started_at, self.done, self.total
        if total is None:
            count = f", {thousands(done)}" if done else ""
            return f"{self.name}{count}, {duration(seconds)} so far"
        if not 0 < done < total:
            return f"{self.name}, {thousands(done)} of {thousands(total)}, {duration(seconds)} so far"
        return f"{self.name}, {thousands(done)} of {thousands(total)}, {duration(seconds * (total - done) / done)} left"


_open: list[Stage] = []


@contextmanager
def stage(name: str, total: int | None = None) -> Iterator[Stage]:
    """Say what is done within the block, or as a decorator within a function; stages may hold others."""
    opened = Stage(name, total)
    _open.append(opened)
    try:
        yield opened
    finally:
        _open.remove(opened)


def in_words() -> str:
    """What is being done, the outer stages by their names; empty where nobody has said."""
    opened = tuple(_open)  # at one moment: another thread may open more
    return ": ".join([*(one.name for one in opened[:-1]), *(one.in_words() for one in opened[-1:])])


def doing(clock: Callable[[], float] = time.monotonic) -> Callable[[], str]:
    """Gives what is being done; where nobody says, such as between two stages, only since when."""
    whole = Stage("working", clock=clock)
    return lambda: in_words() or whole.in_words()


class Pulse:
    """Breaks the silence of a log: says what is being done where nothing was said for a while.

    Args:
        say: writes a line.
        silence: seconds that it may be silent.
        clock: seconds from any fixed moment.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        silence: float = SECONDS_OF_SILENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._silence, self._clock = say, silence, clock
        self._heard_at = clock()
        self._doing = doing(clock)
        self._stopped = threading.Event()

    def heard(self) -> None:
        """A line was written."""
        self._heard_at = self._clock()

    def beat(self) -> None:
        """Say what is being done, if it is time to."""
        if self._clock() - self._heard_at >= self._silence:
            self.heard()
            self._say(self._doing())

    def start(self) -> None:
        """Beat from a thread of its own, which ends with the process."""
        threading.Thread(target=self._run, daemon=True).start()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(1.0):
            self.beat()
