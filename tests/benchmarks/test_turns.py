"""Taking turns, with real processes that are small enough for a fast test."""

import sys
import time
from typing import Any

import pytest

from tests.benchmarks.turns import ChildSide, StoppedError, take_turns

_ECHO = """
import time
from tests.benchmarks.turns import Channel
channel = Channel()
print("noise of a library")
channel.say(ready=True)
while (turn := channel.wait()) is not None:
    if turn.message.get("fail"):
        raise SystemExit("could not go on")
    time.sleep(turn.message["rest"])
    channel.say(heard=turn.message, **turn.measured())
"""


class Writer:
    """A side that writes down when it was asked."""

    def __init__(self, name: str, book: list[str]) -> None:
        self.name, self.book = name, book

    def ask(self, **message: Any) -> dict[str, Any]:
        self.book.append(self.name)
        return {**message, "asked": len(self.book)}


def test_the_sides_are_asked_in_turn() -> None:
    book: list[str] = []
    answers = take_turns([Writer("a", book), Writer("b", book), Writer("c", book)], 3, do="step")
    assert book == ["a", "b", "c"] * 3
    assert [row["asked"] for row in answers["b"]] == [2, 5, 8]
    assert all(row["do"] == "step" for row in answers["c"])


def test_a_process_answers_waits_without_working_and_ends_with_its_input() -> None:
    side = ChildSide("echo", [sys.executable, "-c", _ECHO])
    try:
        assert side.ready == {"ready": True}
        first = side.ask(rest=0.05)
        assert first["heard"] == {"rest": 0.05}
        assert 0.05 <= first["seconds"] < 5
        time.sleep(0.3)
        assert side.ask(rest=0)["idle_cpu_seconds"] < 0.2
    finally:
        side.close()


def test_a_process_that_ends_early_is_reported_with_its_last_words() -> None:
    side = ChildSide("echo", [sys.executable, "-c", _ECHO])
    try:
        with pytest.raises(StoppedError, match=r"(?s)echo ended with exit code 1.*could not go on"):
            side.ask(fail=True)
    finally:
        side.close()
