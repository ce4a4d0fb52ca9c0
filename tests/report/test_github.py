"""Annotations for GitHub: their form, and text that tries to break out of it."""

import re
from typing import Any

import pytest

from simpo_cli.data.pair import BadRecord
from simpo_cli.report.findings_view import annotations

COMMAND = re.compile(r"::(error|warning) ((?:[a-z]+=[^:,\r\n]*,?)+)::([^\r\n]*)")


def said(*rows: str, code: str = "LBL002", count: int = 2, hint: str = "Do it.") -> str:
    finding = {"code": code, "severity": "error", "count": count, "rows": list(rows), "hint": hint}
    (line,) = annotations({"findings": [finding]}, [BadRecord("", "chosen\n::error::is missing", "", "")])
    assert COMMAND.fullmatch(line)
    return line


def test_a_line_of_a_file() -> None:
    assert said("data/prefs.jsonl:17", "data/prefs.jsonl:30") == (
        "::error file=data/prefs.jsonl,line=17,title=LBL002 contradictory labels (A over B and B over A)"
        "::2: contradictory labels (A over B and B over A). Do it. At data/prefs.jsonl:17, data/prefs.jsonl:30"
    )


def test_a_record_has_no_line() -> None:
    assert said("prefs.json, record 4").startswith("::error file=prefs.json,title=LBL002 ")


def test_malformed_records_say_why() -> None:
    line = said("p.jsonl:2", code="FMT001", count=1)
    assert line.endswith("Do it. The first: chosen%0A::error::is missing. At p.jsonl:2")


def test_a_finding_without_a_place() -> None:
    assert said(code="LEN001", count=1234) == "::error title=LEN001::1,234: length predicts the label. Do it."


@pytest.mark.parametrize(
    "name", ["a\n::error::b.jsonl", "50%.jsonl", "a,b:c.jsonl", "\r::stop-commands::x", "\x1b[31mred\u202e.jsonl"]
)
def test_nothing_breaks_out(name: str) -> None:
    line = said(f"{name}:3", hint=f"See {name}")
    found = COMMAND.fullmatch(line)
    assert found is not None
    properties = dict(part.split("=", 1) for part in found[2].split(","))
    assert properties["line"] == "3"
    assert list(properties) == ["file", "line", "title"]
    decoded = properties["file"]
    for code, letter in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        decoded = decoded.replace(code, letter)
    assert decoded == name.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert not any(letter in line for letter in "\r\n\x1b\u202e")


def test_long_lists_are_cut() -> None:
    rows: list[Any] = [f"p.jsonl:{n}" for n in range(1, 21)]
    assert said(*rows, count=100).endswith("At p.jsonl:1, p.jsonl:2, p.jsonl:3, ...")
