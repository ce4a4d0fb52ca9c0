"""Programs that take turns: each lives in a process of its own and works only when it is asked to.

One line of JSON a message, over standard input and output. Everything else that a program prints goes to its standard
error. Imports nothing but the standard library, so that it runs in any environment.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

_SHOWN_LINES = 15


class StoppedError(RuntimeError):
    """A program ended while an answer was awaited."""


class ChildSide:
    """A program in a fresh process, seen from the one that asks.

    Args:
        name: for messages and results.
        command: the program and its arguments.
        environment: variables added to those of this process.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.ready = self._hear()

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a message and wait for the answer.

        Raises:
            StoppedError: the program ended; its last lines are in the message.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        return self._hear()

    def __enter__(self) -> "ChildSide":
        return self

    def __exit__(self, *_: object) -> None:
        """End the program by closing its input, or at once if that does not help."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already
            self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _died(self) -> StoppedError:
        code = self._process.wait()
        self._errors.seek(0)
        tail = "".join(self._errors.readlines()[-_SHOWN_LINES:])
        return StoppedError(f"{self.name} ended with exit code {code}:\n{tail}")


class Channel:
    """The same line, seen from the program that is asked. It also watches what the program does while it waits."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # a library that prints must not be taken for an answer
        self._said_at = _cpu_seconds()

    def say(self, **answer: Any) -> None:
        """Send an answer, or the first message, which says that the program is ready."""
        self._out.write(json.dumps(answer) + "\n")
        self._out.flush()
        self._said_at = _cpu_seconds()

    def wait(self) -> "Turn | None":
        """The next message, or None when nothing more will be asked."""
        line = sys.stdin.readline()
        return Turn(json.loads(line), idle_cpu_seconds=_cpu_seconds() - self._said_at) if line else None


class Turn:
    """A message that has just come, with a clock that started when it came.

    Args:
        message: what was asked.
        idle_cpu_seconds: processor time that this program took while it waited: threads that spin would show here.
    """

    def __init__(self, message: dict[str, Any], idle_cpu_seconds: float) -> None:
        self.message = message
        self._idle = idle_cpu_seconds
        self.restart()

    def restart(self) -> None:
        """Start the clock anew, after what is not to be measured."""
        self._used = resource.getrusage(resource.RUSAGE_SELF)
        self._started = time.perf_counter()

    def measured(self) -> dict[str, float]:
        """Seconds since the clock started: by the clock, of processor time, and the system's part of that."""
        seconds, used = time.perf_counter() - self._started, resource.getrusage(resource.RUSAGE_SELF)
        system = used.ru_stime - self._used.ru_stime
        cpu = used.ru_utime - self._used.ru_utime + system
        return {"seconds": seconds, "cpu_seconds": cpu, "system_seconds": system, "idle_cpu_seconds": self._idle}


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def take_turns(sides: Sequence[ChildSide], rounds: int, **message: Any) -> dict[str, list[dict[str, Any]]]:
    """Ask every side once a round, in the same order: A B A B. One works while the others wait.

    Args:
        sides: who takes part; names are unique.
        rounds: how often.
        message: what each is asked.

    Returns:
        The answers by name, one a round.
    """
    answers: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
    assert len(answers) == len(sides)
    for _ in range(rounds):
        for side in sides:
            answers[side.name].append(side.ask(**message))
    return answers
