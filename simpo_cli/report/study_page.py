"""The page of a study: what was found, every trial as a point, the range test, and the comparison on new seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from simpo_cli import __version__
from simpo_cli.errors import UserError
from simpo_cli.files import object_in
from simpo_cli.report.figures import CHOSEN, FAINT, HELD_OUT, INK, TitledFigure, draw_svg
from simpo_cli.report.page import Section, render, write_page
from simpo_cli.report.study_view import conclusions, confirmed_table, short_key, shown_value, trials_table
from simpo_cli.run.folder import STUDY
from simpo_cli.table import Remark, Table
from simpo_cli.tune.folder import OBJECTIVES, PAGE

Document = Mapping[str, Any]
_TONES = {"better": "good", "worse": "warning", "below start": "warning", "ruled out": "warning"}
_SIZE: dict[str, Any] = {"width": 3.3, "height": 2.1}


def holds_study(path: Path) -> bool:
    """Whether a folder is one of a study."""
    return (path / STUDY).is_file()


def write_study_report(path: Path, output: Path | None = None) -> Path:
    """Write the page of a study's folder, by default FOLDER/study.html, and return its path.

    Raises:
        UserError: the folder is damaged, or the page cannot be written.
    """
    target = path / PAGE if output is None else output
    try:
        page = study_page(object_in((path / STUDY).read_bytes()))
    except (AttributeError, IndexError, KeyError, OSError, TypeError, ValueError) as error:
        raise UserError(
            f"does not hold a study as we write it: {type(error).__name__}, {error}.",
            "Write it anew: the command that made it, with --resume.",
            where=str(path / STUDY),
        ) from error
    write_page(target, page, named="the report" if output is None else "--output")
    return target


def study_page(document: Document) -> str:
    """The page of what study.json holds."""
    said = conclusions(document)
    found = None if document["verdict"] is None else document["verdict"]["found"]
    sections = [
        Section(
            "",
            verdict=said[0],
            tone=_TONES.get(found or "", ""),
            tables=[] if document["confirmed"] is None else [confirmed_table(document)],
            figures=_confirmed_figures(document),
            remarks=said[1:],
        ),
        Section("What was tried", figures=_figures(document), tables=[_trials(document)], remarks=_guards(document)),
    ]
    return render(
        "sections.html.jinja",
        title=f"simpo tune: {document['name']}",
        heading=f"{document['name']}: a study",
        sections=sections,
        end=f"from {document['model']} · {document['tool']}" if document["tool"] else f"simpo {__version__}",
    )


def _trials(document: Document) -> Table:
    """The table of trials, with what is said of single ones below it."""
    table = trials_table(document)
    said = [Remark("trial", f"{row.label.strip()}: {row.remark}") for row in table.rows if row.remark]
    return replace(table, remarks=[*said, *table.remarks])


def _guards(document: Document) -> list[str]:
    guards = document["guards"]
    return [
        f"What chooses: {OBJECTIVES[document['objective']]}. A trial is ruled out where the share of answers that end "
        f"falls by more than {100 * guards['endless']:.0f} points below the start model's, or that of answers that "
        f"repeat themselves rises by more than {100 * guards['repeating']:.0f}. One seed a trial.",
    ]


def _figures(document: Document) -> list[TitledFigure]:
    """The range test, and the trials by the value of each key."""
    figures = []
    swept = document["range"] and document["range"]["sweep"]
    if swept and swept["rates"]:
        figures.append(_sweep_figure(swept, document["range"]["rates"]))
    for key in document["current"]:
        figure = _key_figure(document, key)
        if figure is not None:
            figures.append(figure)
    return figures


def _sweep_figure(swept: Document, tried: Sequence[float]) -> TitledFigure:
    def draw(axes: Axes) -> None:
        axes.semilogx(swept["rates"], swept["losses"], color=INK, linewidth=1.2)
        for rate in tried:
            axes.axvline(rate, color=FAINT, linewidth=0.8)
        axes.set_xlabel("learning rate, rising each step")

    first, last = swept["losses"][0], swept["losses"][-1]
    words = f"Range test. Loss from {first:.2f} at {swept['rates'][0]:.1e} to {last:.2f} at {swept['rates'][-1]:.1e}."
    return TitledFigure(
        "Loss of the range test", draw_svg(draw, "range", words, **_SIZE), "Lines: rates that were tried."
    )


def _key_figure(document: Document, key: str) -> TitledFigure | None:
    """Trials by the value of one key, as far as they were measured."""
    objective = document["objective"]
    trials = [one for one in document["trials"] if one["part"] == "choosing" and one["measures"].get(objective)]
    values = list(dict.fromkeys(one["values"][key] for one in trials))
    if len(values) < 2:
        return None
    if all(isinstance(value, int | float) for value in values):
        values.sort()
    best = document["winner"] and document["winner"]["id"]

    def draw(axes: Axes) -> None:
        for one in trials:
            measured, at = one["measures"][objective], values.index(one["values"][key])
            colour = HELD_OUT if one["id"] == best else CHOSEN
            low, high = (measured["value"] if bound is None else bound for bound in measured["ci"])
            axes.vlines(at, low, high, color=colour, alpha=0.35, linewidth=3)
            filled = colour if not one["measures"]["reasons"] else "none"
            axes.plot([at], [measured["value"]], "o", color=colour, markerfacecolor=filled, markersize=4.5)
        axes.set_xticks(range(len(values)), list(map(shown_value, values)), rotation=30 if len(values) > 5 else 0)
        axes.set_xlabel(short_key(key))

    found = [(shown_value(one["values"][key]), one["measures"][objective]["value"]) for one in trials]
    points = "; ".join(f"{value}: {measured:.3f}" for value, measured in found)
    title = f"{objective.capitalize()} by {short_key(key)}"
    svg = draw_svg(draw, key, f"{title}. {points}.", **_SIZE)
    return TitledFigure(title, svg, "Hollow: ruled out. Of one value, the other keys differ.")


def _confirmed_figures(document: Document) -> list[TitledFigure]:
    confirmed, objective = document["confirmed"], document["objective"]
    if confirmed is None or confirmed.get("difference") is None:
        return []
    arms = [confirmed["arms"][arm][objective] for arm in ("untuned", "winner")]

    def draw(axes: Axes) -> None:
        for before, after in zip(*arms, strict=True):
            axes.plot([0, 1], [before, after], color=FAINT, linewidth=1)
        for place, (values, colour) in enumerate(zip(arms, (INK, HELD_OUT), strict=True)):
            axes.plot(np.full(len(values), place), values, "o", color=colour, markersize=5)
        axes.set_xticks([0, 1], ["your recipe", "the winner"])
        axes.set_xlim(-0.4, 1.4)

    words = "; ".join(
        f"seed {seed}: {one:.3f} and {two:.3f}" for seed, one, two in zip(confirmed["seeds"], *arms, strict=True)
    )
    title = f"{objective.capitalize()} on the confirming half"
    return [TitledFigure(title, draw_svg(draw, "confirmed", f"{title}. {words}.", **_SIZE), "A line a seed.")]
