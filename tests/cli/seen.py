"""What a command line leaves for the one who typed it."""

from collections.abc import Callable
from typing import NamedTuple


class Seen(NamedTuple):
    code: int
    out: str
    err: str


Simpo = Callable[..., Seen]
