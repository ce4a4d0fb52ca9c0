"""JSON that others may have written or damaged, read in bounds: what is none is refused, whatever it holds."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from simpo_cli.errors import UserError

MAX_DEPTH = 64


class MalformedError(ValueError):
    """A document is not what it should be; says which key and why, in one line."""


def parse(data: bytes, *, finite: bool = True) -> Any:
    """A value of JSON in UTF-8 whose nesting is bounded.

    Args:
        data: the bytes.
        finite: refuse NaN, Infinity and numbers that become so.

    Raises:
        MalformedError: it is none.
    """
    bounds: dict[str, Any] = {"parse_constant": _no_number, "parse_float": _finite} if finite else {}
    try:
        content = json.loads(data, **bounds)
    except RecursionError:
        raise MalformedError("lists and objects are nested too deep") from None
    except ValueError as error:  # also text that is not UTF-8, and a whole number of thousands of digits
        raise MalformedError(f"is no JSON: {error}") from error
    if is_too_deep(content):
        raise MalformedError(f"lists and objects are nested more than {MAX_DEPTH} deep")
    return content


def is_too_deep(value: object) -> bool:
    """Whether lists and objects are nested deeper than we take them; without recursion, as they may be very deep."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [v for v in level if isinstance(v, list | dict)]
        if not level:
            return False
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return True


def object_in(data: bytes, *, finite: bool = True) -> dict[str, Any]:
    """The same, which is an object.

    Raises:
        MalformedError: it is none.
    """
    content = parse(data, finite=finite)
    if not isinstance(content, dict):
        raise MalformedError("is not a JSON object")
    return content


def rows_of(data: bytes, file: Path, row_of: Callable[[bytes], dict[str, Any]] = object_in) -> Iterator[dict[str, Any]]:
    """The rows of whole lines; empty ones are left out.

    Raises:
        UserError: a line is no such row.
    """
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            if line:
                yield row_of(line)
        except MalformedError as error:
            fix = "Restore or remove the line."
            raise UserError(f"is no line of this file: {error}.", fix, where=f"{file}:{number}") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large")
    return number
