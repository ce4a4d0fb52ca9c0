"""A page of two runs: which did better on the pairs that both held out, and what was done otherwise."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import simpo_cli
from simpo_cli.formatting import Cell, change_cell, number_cell, points_cell, share_cell
from simpo_cli.report.page import render
from simpo_cli.report.report_file import require_replaceable_page, write_page
from simpo_cli.report.run_files import RunFiles, read_run
from simpo_cli.report.run_page import unbroken
from simpo_cli.report.run_tables import TableRow
from simpo_cli.report.two_runs import (
    TwoRuns,
    caveats,
    compare_runs,
    comparison_verdict,
    is_told,
    other_differences,
    recipe_differences,
)
from simpo_cli.report.two_runs_figures import curve_figures, gained_figure
from simpo_cli.report.verdict import verdict

_SHOWN_DIFFERENCES = 5


def write_comparison(first: Path, second: Path, output: Path | None) -> tuple[Path, TwoRuns]:
    """Write the page of two runs, by default as SECOND/against-FIRST.html, and return its path with what it is about.

    Raises:
        UserError: one is no run, both are one, or the page cannot be written.
    """
    target = second / f"against-{first.resolve().name}.html" if output is None else output
    require_replaceable_page(target, "--output")
    runs = compare_runs(read_run(first), read_run(second))
    write_page(target, comparison_page(runs), named="--output")
    return target, runs


def comparison_page(runs: TwoRuns, now: datetime | None = None) -> str:
    """The page; `now` is when it is made, this moment if not given."""
    return render(
        "two_runs.html.jinja",
        sides=[(name, _name(run), run.path, unbroken(verdict(run))) for name, run in _named(runs)],
        version=simpo_cli.__version__,
        made=(now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC"),
        verdict=unbroken(comparison_verdict(runs)),
        tone=_tone(runs),
        caveats=caveats(runs),
        rows=_rows(runs),
        changes=_changes(runs),
        counts=_counts(runs),
        gained=gained_figure(runs),
        curves=curve_figures(runs),
        recipe=recipe_differences(runs),
        others=other_differences(runs),
    )


def comparison_lines(runs: TwoRuns) -> list[tuple[str, str]]:
    """The page in a few lines for the terminal: label and text."""
    lines = [(name, f"{run.path} · {verdict(run)}") for name, run in _named(runs)]
    lines.append(("B - A", comparison_verdict(runs)))
    lines += [("note", said) for said in caveats(runs)]
    differences = recipe_differences(runs)
    shown = "; ".join(f"{key} {one} / {other}" for key, one, other in differences[:_SHOWN_DIFFERENCES])
    more = len(differences) - _SHOWN_DIFFERENCES
    lines.append(("recipes", (shown or "the same, names aside") + (f"; and {more} more" if more > 0 else "")))
    return lines


def _named(runs: TwoRuns) -> Sequence[tuple[str, RunFiles]]:
    return (("A", runs.first), ("B", runs.second))


def _name(run: RunFiles) -> str:
    return run.path.resolve().name if run.recipe is None else run.recipe.name


def _tone(runs: TwoRuns) -> str:
    """good or error where B is better or worse beyond doubt, warning where nothing can be said."""
    if runs.shared is None or not is_told(runs.comparison):
        return "warning"
    return "good" if runs.comparison.difference.value > 0 else "error"


def _rows(runs: TwoRuns) -> list[TableRow]:
    """What each run is worth on the shared pairs; empty without any."""
    if runs.shared is None:
        return []
    rows = [TableRow("accuracy", *map(share_cell, runs.accuracies))]
    if (balanced := runs.balanced_accuracies) is not None:
        rows.append(TableRow("length-balanced", *map(share_cell, balanced)))
    if (margins := runs.margins) is not None:
        rows.append(TableRow("margin, nats a token", *(number_cell(margin, 3) for margin in margins)))
    return rows


def _changes(runs: TwoRuns) -> list[tuple[str, Cell]]:
    """The same, B less A."""
    if runs.shared is None:
        return []
    rows = [("accuracy, points", points_cell(runs.comparison.difference.as_json()))]
    if runs.balanced is not None:
        rows.append(("length-balanced, points", points_cell(runs.balanced)))
    if runs.gain is not None:
        rows.append(("margin, nats a token", change_cell(runs.gain, 3)))
    return rows


def _counts(runs: TwoRuns) -> list[tuple[str, int]]:
    """How often one run alone was right."""
    if runs.shared is None:
        return []
    told = runs.comparison
    return [("only A is right", told.losses), ("only B is right", told.wins), ("both or neither", told.ties)]
