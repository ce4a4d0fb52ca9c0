"""Before and after: tables, answers, paths and commands at every width, with the worst of texts."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from simpo_cli.formatting import Cell
from simpo_cli.report.console import make_console
from simpo_cli.report.live import print_header, print_outcome
from simpo_cli.run.events import Note, RunHeader, RunOutcome
from simpo_cli.table import Row, Table


def printed(outcome: RunOutcome, width: int) -> str:
    stream = io.StringIO()
    print_outcome(make_console(stream, width=width), outcome)
    return stream.getvalue()


def _table(*rows: tuple[str, str, str, str]) -> Table:
    return Table(("before", "after"), [Row(label, (Cell(one), Cell(two)), remark) for label, one, two, remark in rows])


def test_a_remark_that_does_not_fit_goes_under_the_table(outcome: RunOutcome) -> None:
    assert printed(outcome, 70).startswith("""
                    before                  after
held-out accuracy   51.2 % (46.8 to 55.6)   96.4 % (94.4 to 97.7)
length-balanced     50.9 %                  95.8 %
mean margin         0.02                    3.11
  n = 500 pairs, one seed
""")


def test_several_remarks_under_a_table_name_their_rows(outcome: RunOutcome) -> None:
    rows = (("accuracy", "1", "2", "n = 500 pairs"), ("gain", "", "4", ""), ("margin", "3", "4", "in nats per token"))
    assert printed(replace(outcome, table=_table(*rows)), 36).startswith("""
           before   after
accuracy   1        2
gain                4
margin     3        4

accuracy   n = 500 pairs
margin     in nats per token
""")


def test_a_stacked_table_leaves_out_what_is_empty(outcome: RunOutcome) -> None:
    table = _table(("change kept by the save", "", "99.1 % of all the changes made", ""))
    assert printed(replace(outcome, table=table), 40).startswith("""
change kept by the save
    after   99.1 % of all the changes made
""")


def test_a_table_too_wide_for_columns_is_stacked(outcome: RunOutcome) -> None:
    assert printed(outcome, 40).startswith("""
held-out accuracy
    before  51.2 % (46.8 to 55.6)
    after   96.4 % (94.4 to 97.7)
    n = 500 pairs, one seed
length-balanced
    before  50.9 %
    after   95.8 %
""")


def test_no_table_and_no_answers_leave_where_and_next(outcome: RunOutcome) -> None:
    bare = replace(outcome, table=_table(), answers=(), next_commands=())
    assert printed(bare, 80).split() == ["model", "runs/demo/model"]


def test_paths_and_commands_stay_whole_on_a_narrow_terminal(outcome: RunOutcome) -> None:
    path = "/home/somebody/projects/" + "long/" * 20 + "model"
    command = "simpo eval runs/demo --json " + "data.eval=" + "x" * 60
    text = printed(replace(outcome, model_dir=path, next_commands=((command, "what it does"),)), 40)
    assert f"model   {path}\n" in text
    assert f"next    {command}\n          what it does\n" in text


def test_the_report_is_named_when_there_is_one(outcome: RunOutcome, tmp_path: Path) -> None:
    here = replace(outcome, run_dir=str(tmp_path))
    assert "report  " not in printed(here, 200)
    (tmp_path / "report.html").write_text("<html>")
    assert f"report  {tmp_path}/report.html\n" in printed(here, 200)


@pytest.mark.parametrize("width", [40, 60, 100])
def test_answers_are_wrapped_escaped_and_cut(width: int, outcome: RunOutcome) -> None:
    answers = (
        ("[bold]How?[/bold] \x1b[2J\n" + "why " * 100, "中文" * 200, "1. Open\n\n2.\tChoose \u202eabc"),
        ("", "", "w" * 500),
    )
    text = printed(replace(outcome, answers=answers), width)
    answered = text[text.index('"') : text.index("model ")]
    assert all(cell_len(line) <= width for line in answered.splitlines())
    assert answered.startswith(r'"[bold]How?[/bold] \x1b[2J\nwhy')
    assert "  after   1. Open\n          2.    Choose \\u202eabc\n" in answered
    assert "  before  (empty)\n" in answered
    assert "more characters" in answered
    assert len(answered.splitlines()) < 30


def test_a_header_is_wrapped_under_its_own_text_and_says_what_it_was_given() -> None:
    stream = io.StringIO()
    lines = (Note("data", "one two three four five six seven"), Note("", "LEN001 [x]"), Note("held-out set", "\x1b[1m"))
    print_header(make_console(stream, width=40), RunHeader("a · title", lines))
    assert (
        stream.getvalue()
        == r"""a · title
data         one two three four five six
             seven
             LEN001 [x]
held-out set \x1b[1m
"""
    )


def test_an_answer_that_is_the_same_before_and_after_is_shown_once_and_counted(outcome: RunOutcome) -> None:
    same = replace(outcome, answers=(("A?", "So.", "So."), ("B?", "No.", "Yes."), ("C?", "Hm.", "Hm.")))
    text = printed(same, 80)
    assert '"A?"\n  both    So.\n' in text
    assert '"B?"\n  before  No.\n  after   Yes.\n' in text
    assert "\n2 of 3 answers are the same before and after.\n" in text
    assert "same before and after" not in printed(outcome, 80)
