"""Reports written to files: JSON documents and pages of ours, which may replace one another and nothing else.

A page is one file that opens offline, runs no script and takes no text for markup.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simpo_cli import __version__
from simpo_cli.errors import UserError
from simpo_cli.files import disk_faults, object_in, replacing
from simpo_cli.formatting import percent, thousands
from simpo_cli.redaction import redacted, redacted_values
from simpo_cli.report.console import printable
from simpo_cli.table import Table

if TYPE_CHECKING:
    from simpo_cli.report.figures import TitledFigure

PAGE_MARK = '<meta name="generator" content="simpo">'
"""What a page of ours holds near its beginning."""
_MARK_WITHIN = 1000  # characters

# Controls that JSON leaves as they are, marks of the writing direction and other invisible signs, line separators,
# halves of pairs; the joiners stay, without which some languages cannot be written
_UNSHOWN = re.compile(
    "[\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def json_text(document: Mapping[str, Any] | Sequence[Any]) -> str:
    """A document as JSON text, with what could steer a terminal, such as in a file's name, written as an escape."""
    text = json.dumps(redacted_values(document), indent=2, ensure_ascii=False, allow_nan=False)
    text = _UNSHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return text.replace("##[", "#\\u0023[")  # GitHub's runner obeys this wherever it finds it


def require_replaceable(path: Path) -> None:
    """Refuse to write a JSON report over a file that is not one.

    Raises:
        UserError: the path is a folder, or a file that holds something else.
    """
    _require_ours(path, "--output", "report", lambda: "schema_version" in object_in(path.read_bytes()))


def require_replaceable_page(path: Path, named: str = "--html") -> None:
    """The same of a page; the error calls it by `named`."""

    def is_page() -> bool:
        with path.open(encoding="utf-8") as file:
            return PAGE_MARK in file.read(_MARK_WITHIN)

    _require_ours(path, named, "page", is_page)


def _require_ours(path: Path, option: str, what: str, is_ours: Callable[[], bool]) -> None:
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder.", "Name a file.")
    if not path.exists():
        return
    with suppress(OSError, ValueError):  # it cannot be read, or is something else
        if is_ours():
            return
    raise UserError(f"{option} {path} exists and is not a {what} of simpo.", "Name another file.")


def write_report(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON report, whole or not at all."""
    require_replaceable(path)
    _write(path, "--output", json_text(document) + "\n")


def write_page(path: Path, page: str, named: str = "--html") -> None:
    """Write a page, whole or not at all; an error calls it by `named`."""
    assert PAGE_MARK in page[:_MARK_WITHIN], "a page that could not be replaced later"
    require_replaceable_page(path, named)
    _write(path, named, page)


def _write(path: Path, option: str, text: str) -> None:
    with disk_faults(f"{option} {path} cannot be written"), replacing(path) as file:
        file.write(text)


SHOWN_CHARACTERS = 1200
"""Of each text of the data."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page under its own heading."""

    title: str
    verdict: str = ""  # what it comes to
    tone: str = ""  # whether that is `good`, `warning` or `error`
    alerts: Sequence[str] = ()  # what to know beside it
    tables: Sequence[Table] = ()  # of numbers
    texts: Sequence[Table] = ()  # of words
    figures: Sequence["TitledFigure"] = ()
    remarks: Sequence[str] = ()  # small, at its end


def render(template: str, **content: Any) -> str:
    """A page from a template of this package, which extends `page.html.jinja`; whatever is put in is escaped."""
    return str(_environment().get_template(template).render(mark=PAGE_MARK, version=__version__, **content))


def readable(text: str) -> str:
    """A text with its control characters shown, and cut where it is long."""
    if not text:
        return "(empty)"
    shown = printable(text[:SHOWN_CHARACTERS], keep_newlines=True)[:SHOWN_CHARACTERS]
    left_out = len(text) - SHOWN_CHARACTERS
    return f"{shown}\n… {left_out:,} more characters" if left_out > 0 else shown


def unbroken(text: str) -> str:
    """No line ends between a number and its sign."""
    for sign in (" %", " = ", " < "):
        text = text.replace(sign, sign.replace(" ", "\u00a0"))
    return text


@functools.cache
def _environment() -> Any:
    import jinja2  # only pages need it

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("simpo_cli.report", "."),
        autoescape=True,
        finalize=lambda value: redacted(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent,
        thousands=thousands,
        shown=printable,
        shown_lines=functools.partial(printable, keep_newlines=True),
        readable=readable,
        unbroken=unbroken,
    )
    return environment
