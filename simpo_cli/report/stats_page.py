"""The audit as one HTML file: it opens offline, runs no script, and shows figures and examples of each finding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from simpo_cli.audit.catalogue import CATALOGUE
from simpo_cli.audit.columns import histogram
from simpo_cli.audit.examine import Examination
from simpo_cli.data.load import prompt_messages
from simpo_cli.data.pair import PreferencePair
from simpo_cli.data.raw import BadRecord
from simpo_cli.report.figures import CHOSEN, INK, REJECTED, draw_svg
from simpo_cli.report.findings_view import shared_folder, short_place
from simpo_cli.report.page import readable, render
from simpo_cli.report.stats_view import bar_to_beat, scored_in_words, start_in_words, start_rows, unit_in_words


def length_figure(examination: Examination, unit: str) -> str:
    """How long the chosen and the rejected responses are, up to the 99th percentile of both."""
    chosen, rejected = examination.chosen_len, examination.rejected_len
    high = float(np.percentile(np.concatenate([chosen, rejected]), 99)) or 1.0

    def draw(axes: Axes) -> None:
        for values, colour, name in ((chosen, CHOSEN, "chosen"), (rejected, REJECTED, "rejected")):
            shape = histogram(values, low=0.0, high=high)
            axes.stairs(shape.hist, shape.bin_edges, color=colour, linewidth=1.6, label=name)
        axes.set_xlabel(f"{unit} of the response (the last bin also holds what is longer)")
        axes.set_ylabel("pairs")
        axes.set_xlim(0, high)
        axes.legend()

    return draw_svg(draw, "lengths", "Histogram of the lengths of chosen and rejected responses")


def difference_figure(examination: Examination, unit: str) -> str:
    """Chosen minus rejected length, between its 99th percentiles."""
    difference = examination.chosen_len - examination.rejected_len
    reach = float(np.percentile(np.abs(difference), 99)) or 1.0

    def draw(axes: Axes) -> None:
        shape = histogram(difference, low=-reach, high=reach)
        axes.stairs(shape.hist, shape.bin_edges, fill=True, color=CHOSEN, alpha=0.7)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel(f"chosen - rejected, {unit} (the outermost bins also hold what lies beyond)")
        axes.set_ylabel("pairs")

    return draw_svg(draw, "difference", "Histogram of chosen minus rejected length")


def surface_figure(weights: Mapping[str, float]) -> str:
    """What the surface-only classifier goes by."""
    ordered = sorted(weights.items(), key=lambda item: abs(item[1]))

    def draw(axes: Axes) -> None:
        values = [weight for _, weight in ordered]
        colours = [CHOSEN if weight >= 0 else REJECTED for weight in values]
        axes.barh([name for name, _ in ordered], values, color=colours, height=0.7)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel("weight: to the right, more of it speaks for chosen")

    return draw_svg(draw, "surface", "Weights of the surface-only classifier", height=3.4)


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
