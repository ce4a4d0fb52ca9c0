"""Signals that ask a run to stop, which is granted where nothing is lost by it.

SIGTERM, SIGINT (Ctrl-C) and SIGHUP are noted when they come. The loop looks between micro-batches; what can simply be
done again, such as loading or an evaluation, is left in the middle. A second Ctrl-C leaves at once, wherever the
process is: a thread sees to it, because Python's own handlers wait for the end of a long kernel.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from simpo_cli.errors import ExitCode

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
_SECONDS_TO_LEAVE = 0.5
SHOW_CURSOR = b"\x1b[?25h"  # the live panel hides it

Item = TypeVar("Item")


class Stopped(BaseException):
    """The run was asked to stop, and is at a place where it can."""

    def __init__(self, number: int) -> None:
        self.name = signal.Signals(number).name
        super().__init__(self.name)


class StopRequest:
    """A context in which the signals wait until somebody looks.

    Signals that were ignored before, as under nohup, stay so. Outside of the main thread, where Python allows no
    handlers, it does nothing.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self.is_agreed = False
        """Whether several ranks stop together: then nobody leaves a block `at_once`, and they look at `number`."""
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
            self._watcher = _SecondInterrupt()
        return self

    def __exit__(self, *_: object) -> None:
        if self._before:
            self._watcher.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @property
    def number(self) -> int:
        """The signal that asked to stop; 0 if none has."""
        return self._number or 0

    def check(self) -> None:
        """Stop here if it was asked for."""
        if self._number is not None:
            raise Stopped(self._number)

    def between(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, with a look at the signals before each."""
        for item in items:
            self.check()
            yield item

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that a signal may leave in its middle, because it can simply be done again."""
        if self.is_agreed:
            yield
            return
        before, self._at_once = self._at_once, True
        try:
            self.check()
            yield
        finally:
            self._at_once = before

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._number is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._number = number
        if self._at_once:
            raise Stopped(number)


class _SecondInterrupt:
    """A thread that ends the process when the second Ctrl-C is not answered within half a second."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="second Ctrl-C", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        asked = False
        while numbers := os.read(self._read, 64):  # the interpreter writes the number of each signal
            for number in numbers:
                if number == signal.SIGINT and asked and not self._closed.wait(_SECONDS_TO_LEAVE):
                    if sys.stderr.isatty():
                        os.write(2, SHOW_CURSOR + b"\n")
                    os._exit(ExitCode.INTERRUPTED)
                asked = asked or number in _SIGNALS

    def close(self) -> None:
        """Let the thread end."""
        self._closed.set()
        signal.set_wakeup_fd(self._before)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)
