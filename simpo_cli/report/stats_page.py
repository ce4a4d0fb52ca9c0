"""The audit as one HTML file: it opens offline, runs no script, and shows examples of each finding."""

import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from simpo_cli.audit.catalogue import CATALOGUE
from simpo_cli.audit.examine import Examination
from simpo_cli.data.load import prompt_messages
from simpo_cli.data.pair import PreferencePair
from simpo_cli.data.raw import BadRecord
from simpo_cli.report.console import printable
from simpo_cli.report.findings_view import shared_folder, short_place
from simpo_cli.report.report_file import PAGE_MARK
from simpo_cli.report.start_view import scored_in_words, start_in_words, start_rows
from simpo_cli.report.stats_figures import difference_figure, length_figure, surface_figure
from simpo_cli.report.stats_view import bar_to_beat
from simpo_cli.report.text import percent, percent_range, thousands

SHOWN_CHARACTERS = 1200
"""Of each text in an example."""
SHOWN_FILES = 200
SHOWN_RECORDS = 3
_COLUMNS = (
    ("prompt_len", "prompt"),
    ("chosen_len", "chosen"),
    ("rejected_len", "rejected"),
    ("difference", "chosen - rejected"),
)


@dataclass(frozen=True, slots=True)
class Example:
    """One pair or record of a finding: its place, and its texts under their names."""

    where: str
    texts: Sequence[tuple[str, str]]


def stats_page(
    document: Mapping[str, Any],
    examination: Examination,
    examples: Mapping[str, Sequence[PreferencePair]] | None,
) -> str:
    """The page.

    Args:
        document: what `simpo stats --json` prints.
        examination: the lengths themselves, for the figures, and the malformed records.
        examples: pairs of each finding by its code; None leaves all text of the data out.
    """
    surface, start = document["bias"]["surface"], document["model"]
    shown: dict[str, list[Example]] = {}
    if examples is not None:
        shown = {code: [_pair_example(pair) for pair in pairs] for code, pairs in examples.items()}
        shown["FMT001"] = [_record_example(bad) for bad in examination.refused[:SHOWN_RECORDS]]
    unit = str(document["unit"])
    figures = [length_figure(examination, unit), difference_figure(examination, unit)]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    files = [str(file["path"]) for file in document["input"]["files"]]
    environment.filters.update(percent=percent, thousands=thousands, interval=_interval, shown=printable)
    environment.filters["place"] = lambda row: short_place(row, files)
    template = importlib.resources.files("simpo_cli.report").joinpath("stats.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        mark=PAGE_MARK,
        document=document,
        columns=_COLUMNS,
        catalogue=CATALOGUE,
        examples=shown,
        is_redacted=examples is None,
        sources=document["sources"][:SHOWN_FILES],
        folder=shared_folder(files),
        figures=figures,
        bar="" if surface is None else bar_to_beat(surface),
        start=None if start is None else (scored_in_words(start), start_rows(start), start_in_words(start)),
        surface_figure=None if surface is None else surface_figure(surface["weights"]),
    )


def _interval(measured: Mapping[str, Any]) -> str:
    low, high = measured["ci"]
    return "unknown" if low is None else percent_range(low, high)


def _pair_example(pair: PreferencePair) -> Example:
    turns = prompt_messages(pair.prompt)
    prompt = turns[0].content if len(turns) == 1 else "\n\n".join(f"[{turn.role}] {turn.content}" for turn in turns)
    texts = (("prompt", prompt), ("chosen", pair.chosen), ("rejected", pair.rejected))
    return Example(pair.where, [(name, _readable(text)) for name, text in texts])


def _record_example(bad: BadRecord) -> Example:
    return Example(bad.where, [("trouble", _readable(bad.problem)), ("record", _readable(bad.text))])


def _readable(text: str) -> str:
    """A text with its control characters shown, and cut where it is long."""
    if not text:
        return "(empty)"
    shown = printable(text[:SHOWN_CHARACTERS], keep_newlines=True)[:SHOWN_CHARACTERS]
    left_out = len(text) - SHOWN_CHARACTERS
    return f"{shown}\n… {left_out:,} more characters" if left_out > 0 else shown
