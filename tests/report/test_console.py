"""Text of others does no harm on screens and in GitHub's annotations; streams that cannot show it get stand-ins."""

import io
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from simpo_cli.data.pair import BadRecord
from simpo_cli.report.console import encodable, err, make_console, out, printable
from simpo_cli.report.findings_view import annotations

HOSTILE = "\x1b]0;title\x07\x1b[2J[bold]b[/bold] :smile: \u202eabc\u2066 \x9b31m \r \x00 \U000e0041 \ud800 \u2028"


def bytes_stream(encoding: str) -> tuple[io.BytesIO, io.TextIOWrapper]:
    written = io.BytesIO()
    return written, io.TextIOWrapper(written, encoding=encoding, write_through=True)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("ein Wörtchen, 言語, שלום, السلام", "ein Wörtchen, 言語, שלום, السلام"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("a\tb\nc\r", r"a\tb\nc\r"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("zero\u200bwidth \ufeff", r"zero\u200bwidth \ufeff"),
        ("می\u200cخواهم 👩\u200d🔬", "می\u200cخواهم 👩\u200d🔬"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("", ""),
    ],
)
def test_control_characters_are_shown_and_letters_left_alone(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_newlines_may_stay() -> None:
    assert printable("a\r\nb\n\tc\x1b", keep_newlines=True) == "a\nb\n    c\\x1b"


@given(st.text())
def test_nothing_that_moves_a_cursor_gets_through(text: str) -> None:
    shown = printable(text)
    assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in shown)
    shown.encode()


def test_foreign_text_is_neither_markup_nor_emoji_nor_highlighted() -> None:
    stream = io.StringIO()
    console = make_console(stream, width=200, force_terminal=True)
    console.print(printable(HOSTILE))
    table = Table.grid()
    table.add_row("[red]x[/red] 12 :smile: True")
    console.print(table)
    assert "[bold]b[/bold] :smile:" in stream.getvalue()
    assert "[red]x[/red] 12 :smile: True" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("a · b … ± – “x”", "ascii", 'a - b ... +/- - "x"'),
        ("a · ± é 中", "latin-1", "a · ± é \\u4e2d"),
        ("━─▁▃▅█", "ascii", "=-_.-'"),
        ("中文", "gbk", "中文"),
        ("a · b", "utf-8", "a · b"),
        ("a · b", "no-such-encoding", "a - b"),
    ],
)
def test_what_an_encoding_lacks_gets_a_stand_in(text: str, encoding: str, shown: str) -> None:
    assert encodable(text, encoding) == shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_no_text_breaks_a_stream(encoding: str) -> None:
    written, stream = bytes_stream(encoding)
    make_console(stream, width=200).print(HOSTILE, "▁▂▃ ± 中文 …", soft_wrap=True)
    written.getvalue().decode(encoding)


def test_columns_line_up_although_a_stand_in_is_wider() -> None:
    written, stream = bytes_stream("ascii")
    table = Table.grid(padding=(0, 2))
    table.add_row("5 ± 1", "|")
    table.add_row("12345", "|")
    make_console(stream, width=40).print(table)
    first, second = written.getvalue().decode().splitlines()
    assert first.index("|") == second.index("|")


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    coloured, plain = io.StringIO(), io.StringIO()
    make_console(coloured, force_terminal=True).print("text", style="red")
    monkeypatch.setenv("NO_COLOR", "1")
    make_console(plain, force_terminal=True).print("text", style="red")
    assert "\x1b[31m" in coloured.getvalue()
    assert plain.getvalue() == "text\n"


def test_a_dumb_terminal_gets_no_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = io.StringIO()
    make_console(stream, force_terminal=True).print("text", style="bold red")
    assert stream.getvalue() == "text\n"


def test_data_goes_to_stdout_and_the_rest_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    out.print("data")
    err.print("news")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("data\n", "news\n")


class Gone(io.StringIO):
    """A terminal that was closed: every write fails, and so would the one at exit."""

    def __init__(self, error: type[OSError]) -> None:
        super().__init__()
        self.error = error
        self.descriptor = os.open(os.devnull, os.O_WRONLY)

    def write(self, text: str) -> int:  # noqa: ARG002
        raise self.error(5, "gone")

    def fileno(self) -> int:
        return self.descriptor


@pytest.mark.parametrize("error", [BrokenPipeError, OSError])
def test_a_run_outlives_the_terminal_it_reports_to(error: type[OSError]) -> None:
    console = make_console(Gone(error))
    console.print("step 1")
    console.print("step 2")


def test_data_that_cannot_be_written_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Gone(OSError))
    with pytest.raises(OSError, match="gone"):
        make_console().print("data")


def test_a_command_whose_reader_left_still_ends_with_its_own_exit_code() -> None:
    program = """
import sys
from simpo_cli.report.console import out
for line in range(2_000):
    out.print("a line of data", soft_wrap=True)
sys.exit(3)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 3
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


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
