"""`simpo stats --model` for a person: what was measured, whether a run can learn, and which gamma to begin with.

Findings as GitHub's annotations, out of which no text of others breaks.
"""

import copy
import functools
import re
from typing import Any

import pytest
from rich.cells import cell_len

from simpo_cli.data.pair import BadRecord
from simpo_cli.report.findings_view import annotations
from simpo_cli.report.stats_view import print_start, start_in_words
from tests.report import made_run
from tests.report.screen import printed

measured = functools.partial(made_run.measured, n=100)

START: dict[str, Any] = {
    "model": "tiny",
    "pairs": 100,
    "prompts": 90,
    "of_pairs": 12480,
    "max_length": 2048,
    "objective": made_run.OBJECTIVE,
    "accuracy": measured(0.53, 0.43, 0.63),
    "ties": 0,
    "margin": {
        **measured(0.05, -0.03, 0.13),
        "p5": -1.0,
        "median": 0.0,
        "p95": 1.0,
        "histogram": {"hist": [0, 1, 2, 4, 8, 8, 4, 2, 1, 0], "bin_edges": [n / 2 for n in range(-5, 6)]},
    },
    "target_reached": measured(0.01, 0.0, 0.05),
    "loss": measured(1.21, 1.16, 1.26),
    "gradient_weight": measured(0.61, 0.6, 0.62),
    "logps/chosen": measured(-1.165, -1.17, -1.16),
    "logps/rejected": measured(-1.171, None, None),
    "gap": {"p5": -0.5, "median": 0.0, "p95": 0.5},
    "suggestions": [],
}


def test_the_whole_screen() -> None:
    assert (
        printed(print_start, START)
        == """What could a run learn?
  tiny as it is, on 100 pairs of 90 prompts, the first of 12,480 pairs by hash of the prompt, cut at
  2,048 tokens; beta 2, gamma 1 (gamma/beta 0.5)
  accuracy           53.0 % (95 % CI 43.0 to 63.0, n = 100): the chosen response is the likelier one
  margin             0.05 (95 % CI -0.03 to 0.13): beta × (m(chosen) - m(rejected))
                     -2.5  ▁▂▄██▄▂▁  +2.5
                               ^0^gamma
  past gamma         1.0 % (95 % CI 0.0 to 5.0, n = 100): such pairs teach little
  loss               1.210 (95 % CI 1.160 to 1.260)
  gradient weight    0.61 (95 % CI 0.60 to 0.62): 1 pulls fully, 0 has nothing left to pull
  chosen             -1.165 (95 % CI -1.170 to -1.160) nats a token
  rejected           -1.171 (no interval) nats a token; the nearer to 0, the more the responses are
                     what this model would write itself

  A pair pulls with 0.61 of its full weight on average: there is something to learn.
  The gap m(chosen) - m(rejected) is 0.00 nats a token in the middle, -0.50 to 0.50 in 90 % of the
  pairs. Which gamma/beta, beta and rate are good is not seen there: simpo tune searches them.
"""
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gradient_weight": measured(0.02, 0.01, 0.03)}, "is known to this model already"),
        ({"accuracy": measured(0.2, 0.1, 0.3)}, "see first that the labels are right"),
        ({"suggestions": [{"overrides": ["loss.gamma=2"], "why": "said"}]}, "try  loss.gamma=2   said"),
    ],
)
def test_the_words_follow_the_numbers(changes: dict[str, Any], said: str) -> None:
    assert said not in " ".join(start_in_words(START))
    assert said in " ".join(start_in_words({**START, **changes}))


def test_marks_stand_under_their_bins() -> None:
    start = copy.deepcopy(START)
    start["objective"]["gamma"] = 0.2
    assert "^ 0 and gamma" in printed(print_start, start)
    start["objective"]["gamma"] = 2.4
    lines = printed(print_start, start).splitlines()
    [figure] = [line for line in lines if "+2.5" in line]
    [marks] = [line for line in lines if "^0" in line]
    assert marks.index("^gamma") == figure.index("-2.5") + len("-2.5 ") + 9


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [40, 80, 120])
def test_every_width_and_encoding(width: int, encoding: str) -> None:
    hostile = {**START, "model": "[red]\x1b[2J\u202emodel"}
    shown = printed(print_start, hostile, width=width, encoding=encoding)
    assert not set("\x1b\u202e") & set(shown)
    assert "[red]\\x1b[2J\\u202emodel" in shown.replace("\n  ", "")
    assert all(cell_len(line) <= width for line in shown.splitlines())


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
