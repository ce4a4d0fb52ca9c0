"""Text of others does no harm on screens; streams that lack letters get stand-ins; one table for every place."""

import io
import math
import os
import re
import subprocess
import sys

import pytest
import rich.table
from hypothesis import given
from hypothesis import strategies as st

from simpo_cli.evaluate.tables import eval_table, outcome_table, rules_table
from simpo_cli.formatting import Cell
from simpo_cli.publish.card import markdown
from simpo_cli.report.console import bar, encodable, err, make_console, out, print_table, printable, sparkline
from simpo_cli.report.page import Section, render
from simpo_cli.table import Row, Table
from tests.report.made_run import outcome
from tests.report.parsed_page import Page
from tests.report.screen import OUTCOME, printed
from tests.report.test_eval_view import COMPARISON, RESULT, SLICES

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
    table = rich.table.Table.grid()
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
    table = rich.table.Table.grid(padding=(0, 2))
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


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([], ""),
        ([1.0], "▁"),
        ([2.0, 2.0], "▁▁"),
        ([0.0, 7.0, 3.0], "▁█▄"),
        ([0.0, math.nan, 1.0], "▁ █"),
        ([math.nan, math.inf], "  "),
    ],
)
def test_sparklines(values: list[float], shown: str) -> None:
    assert sparkline(values) == shown


@pytest.mark.parametrize(("share", "done"), [(0, 0), (0.5, 5), (0.999, 9), (1, 10), (2, 10), (-1, 0)])
def test_a_bar_is_full_only_when_all_is_done(share: float, done: int) -> None:
    assert bar(share, 10) == ("━" * done, "─" * (10 - done))


RISE = outcome((0.3, 0.2, 0.4), 0.001, balanced=(0.2, 0.1, 0.3))
TABLES = {
    "before and after": outcome_table(RISE),
    "rules": rules_table(RISE["after"]["baselines"]),
    "one model": eval_table({**RESULT, **COMPARISON, "slices": SLICES}),
}


def _page(table: Table) -> str:
    page = render("sections.html.jinja", title="", heading="", end="", sections=[Section("", tables=[table])])
    return " ".join(Page(page).text)


def _words(text: str) -> list[str]:
    return re.sub(r"[()|,]", " ", text).split()


@pytest.mark.parametrize("name", TABLES)
def test_screen_page_and_card_show_the_same_numbers_in_the_same_order(name: str) -> None:
    table = TABLES[name]
    wanted = [word for row in table.rows for text in (row.label, *map(str, row.cells)) for word in _words(text)]
    for drawn in (printed(print_table, table, width=200), _page(table), markdown(table)):
        words = iter(_words(drawn))
        assert all(word in words for word in wanted)  # in this order, whatever stands between them


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("width", [30, 60, 100])
def test_no_width_loses_a_number(name: str, width: int) -> None:
    table = TABLES[name]
    shown = _words(printed(print_table, table, width=width))
    for row in table.rows:
        for cell in row.cells:
            assert set(_words(cell.text)) <= set(shown)
            assert set(_words(cell.below)) <= set(shown)


def before_after(*rows: tuple[str, str, str, str]) -> Table:
    return Table(("before", "after"), [Row(label, (Cell(one), Cell(two)), remark) for label, one, two, remark in rows])


BESIDE = (("accuracy", "1", "2", "n = 500 pairs"), ("gain", "", "4", ""), ("margin", "3", "4", "in nats per token"))


@pytest.mark.parametrize(
    ("table", "width", "shown"),
    [
        pytest.param(
            OUTCOME.table,
            70,
            """\
                    before                  after
held-out accuracy   51.2 % (46.8 to 55.6)   96.4 % (94.4 to 97.7)
length-balanced     50.9 %                  95.8 %
mean margin         0.02                    3.11

held-out accuracy   n = 500 pairs, one seed
""",
            id="a remark that does not fit goes under the table, with the name of its row",
        ),
        pytest.param(
            before_after(*BESIDE),
            36,
            """\
           before   after
accuracy   1        2
gain                4
margin     3        4

accuracy   n = 500 pairs
margin     in nats per token
""",
            id="several remarks name their rows",
        ),
        pytest.param(
            OUTCOME.table,
            40,
            """\
held-out accuracy
    before  51.2 % (46.8 to 55.6)
    after   96.4 % (94.4 to 97.7)
    n = 500 pairs, one seed
length-balanced
    before  50.9 %
    after   95.8 %
mean margin
    before  0.02
    after   3.11
""",
            id="too wide for columns",
        ),
        pytest.param(
            before_after(("change kept by the save", "", "99.1 % of all the changes made", "")),
            40,
            """\
change kept by the save
    after   99.1 % of all the changes made
""",
            id="stacked, without what is empty",
        ),
    ],
)
def test_tables_on_narrow_terminals(table: Table, width: int, shown: str) -> None:
    assert printed(print_table, table, width=width) == shown
