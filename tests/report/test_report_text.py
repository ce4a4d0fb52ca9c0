"""Numbers as people read them, and one table that screen, page and model card draw."""

import io
import math
import re

import pytest

from simpo_cli.evaluate.tables import eval_table, outcome_table, rules_table
from simpo_cli.formatting import (
    border_in_words,
    compact,
    duration,
    fixed,
    p_in_words,
    percent,
    percent_range,
    points_cell,
    prompts_in_words,
    share_cell,
    thousands,
)
from simpo_cli.publish.card import markdown
from simpo_cli.report.console import bar, make_console, print_table, sparkline
from simpo_cli.report.page import Section, render
from simpo_cli.table import Table
from tests.report.made_run import outcome
from tests.report.parsed_page import Page
from tests.report.test_eval_view import COMPARISON, RESULT, SLICES


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00"),
        (38.2, "0:38"),
        (59.6, "1:00"),
        (950, "15:50"),
        (7390, "2:03:10"),
        (86400 * 3 + 245 * 60, "3 d 04:05"),
        (-1, "0:00"),
        (math.nan, "?"),
        (math.inf, "?"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(0, "0"), (950, "950"), (999.6, "1.0k"), (41_210, "41.2k"), (999_950, "1.0M"), (2.5e9, "2.5G"), (math.nan, "nan")],
)
def test_speeds(amount: float, shown: str) -> None:
    assert compact(amount) == shown


def test_numbers() -> None:
    assert fixed(-0.001, 2) == "0.00"
    assert fixed(math.nan, 2) == "nan"
    assert percent(0.5123) == "51.2 %"
    assert percent_range(0.468, 0.5561) == "46.8 to 55.6"
    assert thousands(11902) == "11,902"


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


@pytest.mark.parametrize(
    ("p_value", "said"),
    [
        (0.5, "p = 0.5"),
        (0.0321, "p = 0.032"),
        (0.0001, "p = 0.0001"),
        (9e-5, "p < 0.0001"),
        (0.0479, "p = 0.0479"),
        (0.04998, "p = 0.0499"),  # and not 0.05, which is not below it
        (0.05, "p = 0.05"),
        (0.0513, "p = 0.0513"),
    ],
)
def test_p_values(p_value: float, said: str) -> None:
    assert p_in_words(p_value) == said


@pytest.mark.parametrize(
    ("low", "p_value", "said"),
    [
        (0.001, 0.0513, "the interval leaves out zero, p is not below 0.05"),
        (-0.001, 0.0479, "the interval holds zero, p is below 0.05"),
        (0.001, 0.0479, ""),
        (-0.001, 0.0513, ""),
        (None, 0.0513, ""),
    ],
)
def test_where_interval_and_test_disagree_it_is_said(low: float | None, p_value: float, said: str) -> None:
    border = border_in_words({"value": 0.05, "ci": [low, 0.1], "n": 90}, p_value)
    assert said in border
    assert bool(border) == bool(said)


@pytest.mark.parametrize(
    ("prompts", "effective", "said"),
    [
        (1200, 700.5, "1,200 prompts"),
        (12, 9.5, "12 prompts"),
        (100, 24.6, "100 prompts (they count as 25: a few of them hold most of the pairs)"),
    ],
)
def test_prompts_that_count_for_fewer(prompts: int, effective: float, said: str) -> None:
    assert prompts_in_words({"prompts": prompts, "effective_prompts": effective}) == said


def test_an_interval_ends_where_shares_do_and_may_be_missing() -> None:
    assert str(share_cell({"value": 1.0, "ci": [0.98, 1.02], "n": 9})) == "100.0 % (98.0 to 100.0)"
    assert str(share_cell({"value": 1.0, "ci": [0.9, None], "n": 1})) == "100.0 % (no interval)"
    assert str(points_cell({"value": -0.0001, "ci": [-0.02, 0.031], "n": 9})) == "+0.0 (-2.0 to +3.1)"


RISE = outcome((0.3, 0.2, 0.4), 0.001, balanced=(0.2, 0.1, 0.3))
TABLES = {
    "before and after": outcome_table(RISE),
    "rules": rules_table(RISE["after"]["baselines"]),
    "one model": eval_table({**RESULT, **COMPARISON, "slices": SLICES}),
}


def _screen(table: Table, width: int) -> str:
    stream = io.StringIO()
    print_table(make_console(stream, width=width), table)
    return stream.getvalue()


def _page(table: Table) -> str:
    page = render("sections.html.jinja", title="", heading="", end="", sections=[Section("", tables=[table])])
    return " ".join(Page(page).text)


def _words(text: str) -> list[str]:
    return re.sub(r"[()|,]", " ", text).split()


@pytest.mark.parametrize("name", TABLES)
def test_screen_page_and_card_show_the_same_numbers_in_the_same_order(name: str) -> None:
    table = TABLES[name]
    wanted = [word for row in table.rows for text in (row.label, *map(str, row.cells)) for word in _words(text)]
    for drawn in (_screen(table, 200), _page(table), markdown(table)):
        words = iter(_words(drawn))
        assert all(word in words for word in wanted)  # in this order, whatever stands between them


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("width", [30, 60, 100])
def test_no_width_loses_a_number(name: str, width: int) -> None:
    table = TABLES[name]
    shown = _words(_screen(table, width))
    for row in table.rows:
        for cell in row.cells:
            assert set(_words(cell.text)) <= set(shown)
            assert set(_words(cell.below)) <= set(shown)
