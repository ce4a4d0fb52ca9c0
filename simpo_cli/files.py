"""Files that others may have damaged, read in bounds; files that are written whole or not at all; disk faults."""

import errno
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

from simpo_cli.errors import ExitCode, UserError

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


_SPACE = "Free some space"
_MEND = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: f"{_SPACE}, or ask for a larger quota",
    errno.EFBIG: "Raise the limit on the size of a file (ulimit -f)",
    errno.EIO: "Mend the disk, or the connection to it",
    errno.ESTALE: "Mend the connection to the disk",
    errno.EROFS: "Make the disk writable, or name a place on another",
    errno.EACCES: "Give yourself permission, or name a place of yours",
    errno.EPERM: "Give yourself permission, or name a place of yours",
    errno.ENAMETOOLONG: "Choose a shorter name",
}
_NOT_THERE = {
    errno.ENOENT: "Put back the folder that is gone, or name one that exists",
    errno.ENOTDIR: "Name a place in a folder",
}


def is_of_the_disk(error: OSError) -> bool:
    """Whether an error says something about the machine, whatever it was that we wanted to do."""
    return error.errno in _MEND


def exit_code_of(error: Exception) -> ExitCode:
    """What the shell is told of a file that cannot be read: 4 where the machine is to blame, 2 where the file is."""
    return ExitCode.ENVIRONMENT if isinstance(error, OSError) and is_of_the_disk(error) else ExitCode.USAGE


def how_to_mend(error: OSError) -> str:
    """What a person can do about it, as the beginning of a sentence."""
    return (_MEND | _NOT_THERE).get(error.errno or 0, "Mend the disk")


@contextmanager
def disk_faults(what: str, then: str = "") -> Iterator[None]:
    """A block in which what a disk refuses becomes an error that a person can act on.

    Args:
        what: what cannot be done, such as `metrics.jsonl cannot be written`.
        then: what comes after the mending, such as `, and run the same command again`.

    Raises:
        UserError: exit code 4; an OSError without a number, which is none of the system's, passes as it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise UserError(
            f"{what}: {error.strerror}.", f"{how_to_mend(error)}{then}.", exit_code=ExitCode.ENVIRONMENT
        ) from error


def new_file(path: Path, mode: Literal["x", "x+", "xb"] = "x") -> IO[Any]:
    """Open a file of this name for writing text, or bytes, which is a new one: what has the name goes, be it a link.

    A name that another process can foresee must not lead what is written to a file of its choice.
    """
    path.unlink(missing_ok=True)
    return path.open(mode) if mode == "xb" else path.open(mode, encoding="utf-8", newline="\n")


def sync(path: Path) -> None:
    """Wait until the disk has what was written to a file, or which entries a folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path, mode: Literal["x", "xb"] = "x", *, written_in: Path | None = None) -> Iterator[IO[Any]]:
    """A new file that takes the place of `path` when the block ends, and is gone when the block fails.

    Whoever reads `path` finds the old or the new one, never half of it, also after a power cut.

    Args:
        path: the file.
        mode: for text or for bytes.
        written_in: a folder of the same disk that holds the new file until it is whole, and for good where the process
            is killed; default: that of `path`.

    Raises:
        OSError: the disk did not take it; the old file is as it was.
    """
    temporary = (written_in or path.parent) / f".{path.name.lstrip('.')}.{os.getpid()}"
    try:
        with new_file(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def append_line(path: Path, line: str) -> None:
    """Append a line to a file and wait until the disk has it; a last line without an end gets one first.

    Raises:
        OSError: the disk did not take it; the file is as it was.
    """
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        rest = (b"\n" if file.read(1) not in (b"", b"\n") else b"") + line.encode() + b"\n"
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                os.ftruncate(file.fileno(), size)
            raise
