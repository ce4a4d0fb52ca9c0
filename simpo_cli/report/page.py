"""The frame that all pages share: one file that opens offline, runs no script and takes no text for markup."""

import functools
from collections.abc import Mapping
from typing import Any

import jinja2

from simpo_cli.formatting import percent, share_cell, thousands
from simpo_cli.redaction import redacted
from simpo_cli.report.console import printable
from simpo_cli.report.report_file import PAGE_MARK

SHOWN_CHARACTERS = 1200
"""Of each text of the data."""


def render(template: str, **content: Any) -> str:
    """A page from a template of this package, which extends `page.html.jinja`; whatever is put in is escaped."""
    return _environment().get_template(template).render(mark=PAGE_MARK, **content)


def readable(text: str) -> str:
    """A text with its control characters shown, and cut where it is long."""
    if not text:
        return "(empty)"
    shown = printable(text[:SHOWN_CHARACTERS], keep_newlines=True)[:SHOWN_CHARACTERS]
    left_out = len(text) - SHOWN_CHARACTERS
    return f"{shown}\n… {left_out:,} more characters" if left_out > 0 else shown


@functools.cache
def _environment() -> jinja2.Environment:
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
        interval=_interval,
        shown=printable,
        shown_lines=functools.partial(printable, keep_newlines=True),
        readable=readable,
    )
    return environment


def _interval(measured: Mapping[str, Any]) -> str:
    return share_cell(measured).below
