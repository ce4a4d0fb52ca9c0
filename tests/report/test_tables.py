"""One table, drawn by screen, page and model card: each shows every label and number of it."""

import io
import re

import pytest

from simpo_cli.evaluate.tables import eval_table, outcome_table, rules_table
from simpo_cli.publish.card import markdown
from simpo_cli.report.console import make_console
from simpo_cli.report.page import Section, render
from simpo_cli.report.terminal import print_table
from simpo_cli.table import Table
from tests.report.made_run import outcome
from tests.report.parsed_page import Page
from tests.report.test_eval_view import COMPARISON, RESULT, SLICES

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
