"""Findings as GitHub's workflow commands: they show as annotations beside the files of a pull request."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simpo_cli.audit.catalogue import CATALOGUE
from simpo_cli.data.raw import BadRecord
from simpo_cli.formatting import thousands
from simpo_cli.report.console import printable

_LINE = re.compile(r"(?P<file>.+):(?P<line>[1-9]\d*)", re.DOTALL)
_RECORD = re.compile(r"(?P<file>.+), (?P<record>record \d+)", re.DOTALL)
_SHOWN_PLACES = 3


def annotations(document: Mapping[str, Any], refused: Sequence[BadRecord]) -> Iterator[str]:
    """One command a finding, at its first place: GitHub shows ten errors and ten warnings of a step and no more.

    Args:
        document: what `simpo stats --json` prints.
        refused: the first malformed records, whose reasons the document does not hold.
    """
    for finding in document["findings"]:
        title = CATALOGUE[finding["code"]].title
        rows = [str(row) for row in finding["rows"]]
        properties = (
            [*_place(rows[0]), ("title", f"{finding['code']} {title}")] if rows else [("title", finding["code"])]
        )
        message = f"{thousands(finding['count'])}: {title}. {finding['hint']}"
        if finding["code"] == "FMT001":
            message += f" The first: {refused[0].problem}."
        if rows:
            more = ", ..." if finding["count"] > _SHOWN_PLACES else ""
            message += f" At {', '.join(rows[:_SHOWN_PLACES])}{more}"
        said = ",".join(f"{name}={_escaped_property(value)}" for name, value in properties)
        yield f"::{finding['severity']} {said}::{_escaped(message)}"


def _place(row: str) -> list[tuple[str, str]]:
    """A pair's place as file and line; JSON arrays and tables have records, which GitHub does not know."""
    if (found := _LINE.fullmatch(row)) is not None:
        return [("file", found["file"]), ("line", found["line"])]
    if (found := _RECORD.fullmatch(row)) is not None:
        return [("file", found["file"])]
    return []


def _escaped(text: str) -> str:
    """Text of a command: what would end it or begin another is written as GitHub wants it.

    A file's name may hold anything; other control characters are shown as they are in the terminal.
    """
    shown = "".join(letter if letter in "\r\n" else printable(letter) for letter in text)
    return shown.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escaped_property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")
