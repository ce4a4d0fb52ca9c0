"""The audit as one HTML file: it opens offline, runs no script, and shows figures and examples of each finding."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from simpo_cli.audit.catalogue import CATALOGUE
from simpo_cli.audit.examine import Examination
from simpo_cli.data.pair import PreferencePair, prompt_messages
from simpo_cli.formatting import Cell, thousands
from simpo_cli.report.figures import CHOSEN, INK, REJECTED, draw_svg
from simpo_cli.report.findings_view import shared_folder, short_place
from simpo_cli.report.page import render
from simpo_cli.report.stats_view import (
    bias_table,
    lengths_table,
    parts_table,
    scored_in_words,
    start_in_words,
    start_rows,
    unit_in_words,
)
from simpo_cli.table import Bars, Remark, Row, Table

SHOWN_FILES = 200
SHOWN_RECORDS = 3


def stats_page(
    document: Mapping[str, Any], examination: Examination, examples: Mapping[str, Sequence[PreferencePair]] | None
) -> str:
    """The page of what `simpo stats --json` prints.

    Args:
        document: that.
        examination: the lengths themselves, for the figures, and the malformed records.
        examples: pairs of each finding by its code; None leaves all text of the data out.
    """
    surface, start, groups = document["bias"]["surface"], document["model"], document["groups"]
    shown: dict[str, list[dict[str, Any]]] = {}
    if examples is not None:
        shown = {code: [_pair_example(pair) for pair in pairs] for code, pairs in examples.items()}
        shown["FMT001"] = [
            {"where": bad.where, "texts": [("trouble", bad.problem), ("record", bad.text)]}
            for bad in examination.refused.first[:SHOWN_RECORDS]
        ]
    files = [str(file["path"]) for file in document["input"]["files"]]
    folder = shared_folder(files)
    lengths, parts = lengths_table(document, examination), []
    if len(files) > 1:
        named = [(file.removeprefix(folder), part) for file, part in zip(files, document["sources"], strict=True)]
        parts.append(parts_table("By file", named[:SHOWN_FILES], with_codes=True))
    if groups is not None and examples is not None:
        named = [(str(part["value"]), part) for part in groups["values"]]
        parts.append(parts_table(f"By {groups['field']}", named, with_codes=True))
    measured = [] if start is None else [Row(name, (Cell(text),)) for name, text in start_rows(start)]
    return render(
        "stats.html.jinja",
        place=lambda row: short_place(row, files),
        document=document,
        unit=unit_in_words(document),
        catalogue=CATALOGUE,
        examples=shown,
        is_redacted=examples is None,
        lengths=lengths,
        figures=_length_figures(lengths.figures, str(document["unit"])),
        bias=bias_table(document),
        surface_figure=None if surface is None else _surface_figure(surface["weights"]),
        start=None if start is None else Table(("",), measured),
        start_words=[] if start is None else [scored_in_words(start), *start_in_words(start)],
        parts=parts,
        more_files=len(files) - SHOWN_FILES,
        read=_files_table(document["input"]),
    )


def _files_table(source: Mapping[str, Any]) -> Table:
    """The files that were read, with what tells whether they have changed since."""
    rows = [
        Row(file["path"], (Cell(thousands(file["bytes"])), Cell(file["identity"])))
        for file in source["files"][:SHOWN_FILES]
    ]
    remarks = [Remark("warning", f"{warning}: {thousands(count)}") for warning, count in source["warnings"].items()]
    return Table(("bytes", "sha256 or commit"), rows, title="file", remarks=remarks)


def _pair_example(pair: PreferencePair) -> dict[str, Any]:
    """Its place, and its texts under their names."""
    turns = prompt_messages(pair.prompt)
    prompt = turns[0].content if len(turns) == 1 else "\n\n".join(f"[{turn.role}] {turn.content}" for turn in turns)
    return {"where": pair.where, "texts": [("prompt", prompt), ("chosen", pair.chosen), ("rejected", pair.rejected)]}


def _length_figures(figures: Sequence[Bars], unit: str) -> list[str]:
    """Chosen and rejected on one scale, and their difference."""
    *sides, difference = figures

    def draw_sides(axes: Axes) -> None:
        for bars, colour in zip(sides, (CHOSEN, REJECTED), strict=True):
            axes.stairs(bars.counts, bars.edges, color=colour, linewidth=1.6, label=bars.label)
        axes.set_xlabel(f"{unit} of the response (the last bin also holds what is longer)")
        axes.set_ylabel("pairs")
        axes.set_xlim(0, sides[0].edges[-1])
        axes.legend()

    def draw_difference(axes: Axes) -> None:
        axes.stairs(difference.counts, difference.edges, fill=True, color=CHOSEN, alpha=0.7)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel(f"chosen - rejected, {unit} (the outermost bins also hold what lies beyond)")
        axes.set_ylabel("pairs")

    return [
        draw_svg(draw_sides, "lengths", "Histogram of the lengths of chosen and rejected responses"),
        draw_svg(draw_difference, "difference", "Histogram of chosen minus rejected length"),
    ]


def _surface_figure(weights: Mapping[str, float]) -> str:
    """What the surface-only classifier goes by."""
    ordered = sorted(weights.items(), key=lambda item: abs(item[1]))

    def draw(axes: Axes) -> None:
        values = [weight for _, weight in ordered]
        colours = [CHOSEN if weight >= 0 else REJECTED for weight in values]
        axes.barh([name for name, _ in ordered], values, color=colours, height=0.7)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel("weight: to the right, more of it speaks for chosen")

    return draw_svg(draw, "surface", "Weights of the surface-only classifier", height=3.4)
