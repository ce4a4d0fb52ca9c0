"""What a command line leaves for the one who typed it."""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from simpo_cli.cli.main import run


class Seen(NamedTuple):
    code: int
    out: str
    err: str


Simpo = Callable[..., Seen]


def typed(streams: pytest.CaptureFixture[str]) -> Simpo:
    """Runs a command line in this process."""

    def type_in(*words: str) -> Seen:
        code = run(words)
        return Seen(code, *streams.readouterr())

    return type_in
