"""The audit as one HTML file: it opens offline, runs no script, and shows examples of each finding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simpo_cli.audit.catalogue import CATALOGUE
from simpo_cli.audit.examine import Examination
from simpo_cli.data.load import prompt_messages
from simpo_cli.data.pair import PreferencePair
from simpo_cli.data.raw import BadRecord
from simpo_cli.report.findings_view import shared_folder, short_place
from simpo_cli.report.page import readable, render
from simpo_cli.report.start_view import scored_in_words, start_in_words, start_rows
from simpo_cli.report.stats_figures import difference_figure, length_figure, surface_figure
from simpo_cli.report.stats_view import bar_to_beat, unit_in_words

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
        shown["FMT001"] = [_record_example(bad) for bad in examination.refused.first[:SHOWN_RECORDS]]
    unit = str(document["unit"])
    figures = [length_figure(examination, unit), difference_figure(examination, unit)]
    files = [str(file["path"]) for file in document["input"]["files"]]
    folder, groups = shared_folder(files), document["groups"]
    return render(
        "stats.html.jinja",
        place=lambda row: short_place(row, files),
        document=document,
        unit=unit_in_words(document),
        columns=_COLUMNS,
        catalogue=CATALOGUE,
        examples=shown,
        is_redacted=examples is None,
        files=[(name.removeprefix(folder), part) for name, part in zip(files, document["sources"], strict=True)][
            :SHOWN_FILES
        ],
        groups=[] if groups is None or examples is None else [(part["value"], part) for part in groups["values"]],
        folder=folder,
        figures=figures,
        bar="" if surface is None else bar_to_beat(surface),
        start=None if start is None else (scored_in_words(start), start_rows(start), start_in_words(start)),
        surface_figure=None if surface is None else surface_figure(surface["weights"]),
    )


def _pair_example(pair: PreferencePair) -> Example:
    turns = prompt_messages(pair.prompt)
    prompt = turns[0].content if len(turns) == 1 else "\n\n".join(f"[{turn.role}] {turn.content}" for turn in turns)
    texts = (("prompt", prompt), ("chosen", pair.chosen), ("rejected", pair.rejected))
    return Example(pair.where, [(name, readable(text)) for name, text in texts])


def _record_example(bad: BadRecord) -> Example:
    return Example(bad.where, [("trouble", readable(bad.problem)), ("record", readable(bad.text))])
