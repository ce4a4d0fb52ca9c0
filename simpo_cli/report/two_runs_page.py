"""A page of two runs: which did better on the pairs that both held out, their curves, and what was done otherwise."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from simpo_cli import __version__
from simpo_cli.evaluate.tables import MEASURES, difference_table
from simpo_cli.formatting import LOG_PROB_DIGITS, Cell, number_cell, percent, share_cell
from simpo_cli.report.figures import (
    HELD_OUT,
    INK,
    Curve,
    Line,
    Show,
    TitledFigure,
    curve_figure,
    histogram_figure,
    signed,
    three_digits,
    two_digits,
)
from simpo_cli.report.page import Section, render, require_replaceable_page, write_page
from simpo_cli.report.run_files import read_run
from simpo_cli.report.two_runs import (
    SharedPairs,
    TwoRuns,
    caveats,
    compare_runs,
    comparison_verdict,
    other_differences,
    recipe_differences,
)
from simpo_cli.report.verdict import tone_of, verdict
from simpo_cli.table import Row, Table

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
    (_, first), (_, second) = sides = (("A", runs.first), ("B", runs.second))
    made, shared = (now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC"), runs.shared
    recipe, others = recipe_differences(runs), other_differences(runs)
    about = [Row(f"{letter} · {run.name}", (Cell(verdict(run), str(run.path)),)) for letter, run in sides]
    sections = [
        Section(
            "",
            verdict=comparison_verdict(runs),
            tone="warning" if shared is None else tone_of(shared.difference),
            alerts=caveats(runs),
        ),
        Section("What each run says of itself", texts=[Table(("",), about)]),
        *([] if shared is None else [_shared_section(shared)]),
        Section(
            "What differs in the recipes",
            texts=[_table(recipe)] if recipe else [],
            remarks=[] if recipe else ["Nothing, names aside."],
        ),
    ]
    if others:
        sections.append(Section("What else differs", texts=[_table(others)]))
    if curves := _curve_figures(runs):
        remark = (
            "Curves of training are running means over 4 % of the steps; batches hold different pairs. Bands are 95 % "
            "intervals. Each run is scored on all of its own held-out pairs, and margins are in units of its own "
            "reward (beta)."
        )
        sections.append(Section("Curves", figures=curves, remarks=[remark]))
    return render(
        "sections.html.jinja",
        title=f"simpo: {second.name} against {first.name}",
        heading=f"{second.name} against {first.name}",
        sections=sections,
        end=f"Made by simpo {__version__} at {made} from run.json, recipe.yaml and the .jsonl files of both runs.",
    )


def comparison_lines(runs: TwoRuns) -> list[tuple[str, str]]:
    """The page in a few lines for the terminal: label and text."""
    lines = [(name, f"{run.path} · {verdict(run)}") for name, run in (("A", runs.first), ("B", runs.second))]
    lines.append(("B - A", comparison_verdict(runs)))
    lines += [("note", caveat) for caveat in caveats(runs)]
    differences = recipe_differences(runs)
    shown = "; ".join(f"{key} {one} / {other}" for key, one, other in differences[:_SHOWN_DIFFERENCES])
    more = len(differences) - _SHOWN_DIFFERENCES
    lines.append(("recipes", (shown or "the same, names aside") + (f"; and {more} more" if more > 0 else "")))
    return lines


def _shared_section(shared: SharedPairs) -> Section:
    rows = [Row("accuracy", tuple(map(share_cell, shared.accuracies)))]
    if shared.balanced is not None:
        rows.append(Row(MEASURES["length.balanced"][0], tuple(map(share_cell, shared.balanced))))
    if shared.margins is not None:
        cells = tuple(number_cell(margin, LOG_PROB_DIGITS) for margin in shared.margins)
        rows.append(Row("margin, nats/token", cells))
    table = difference_table(shared.difference)
    change = replace(
        table, title="B - A", remarks=[one for one in table.remarks if one.kind not in ("units", "border")]
    )
    remark = (
        "Small numbers are 95 % intervals. Both columns are the saved models after training, scored at the end of "
        "their own runs. Differences are of the same pairs, so they are surer than two intervals that overlap make "
        "them look."
    )
    return Section(
        "On the same held-out pairs",
        tables=[Table(("A", "B"), rows, title="after training"), change],
        figures=_gained_figure(shared),
        remarks=[remark],
    )


def _table(differences: list[tuple[str, str, str]]) -> Table:
    return Table(("A", "B"), [Row(key, (Cell(first), Cell(second))) for key, first, second in differences])


def _curve_figures(runs: TwoRuns) -> list[TitledFigure]:
    """Curves of both runs by step, or by pairs seen where their steps hold different numbers of pairs."""

    def rate(value: float) -> str:
        return f"{value:.2g}"

    figures = [
        _curve_figure(runs, "Held-out accuracy", "accuracy", percent, kind="points"),
        _curve_figure(runs, "Held-out loss", "loss", three_digits, kind="points"),
        _curve_figure(runs, "Held-out margin", "margin", two_digits, kind="points"),
        _curve_figure(runs, "Drift of chosen log-probs", "logps/chosen_delta", signed, kind="points"),
        _curve_figure(runs, "Training loss", "loss", three_digits),
        _curve_figure(runs, "Training margin", "rewards/margins", two_digits),
        _curve_figure(runs, "Gradient norm", "grad_norm", two_digits),
        _curve_figure(runs, "Learning rate", "learning_rate", rate, kind="exact"),
    ]
    return [figure for figure in figures if figure is not None]


def _curve_figure(
    runs: TwoRuns, title: str, key: str, show: Show, *, kind: Literal["mean", "points", "exact"] = "mean"
) -> TitledFigure | None:
    """One number of both runs; None where neither has it."""
    sizes = [int(run.receipt["plan"]["pairs_per_step"]) for run in (runs.first, runs.second)]
    by_pairs = sizes[0] != sizes[1]
    lines, most = [], 0.0
    for name, run, size, colour in zip("AB", (runs.first, runs.second), sizes, (INK, HELD_OUT), strict=True):
        scale, rows = size if by_pairs else 1, run.evals if kind == "points" else run.metrics
        ends = [Curve.of(rows, f"{key}_{end}", scale) for end in ("low", "high")]
        lines.append(Line(name, Curve.of(rows, key, scale), colour, kind, (ends[0], ends[1])))
        most = max(most, scale * run.steps_done)
    is_drift = key.endswith("_delta")  # which begins at 0 and says something from its second point on
    if not any(len(line.curve) > is_drift for line in lines):
        return None
    return curve_figure(
        title,
        lines,
        show,
        most,
        name=f"two-{title}",
        level=(0.5, "random baseline") if show is percent else None,
        has_zero=is_drift,
        unit="pairs seen" if by_pairs else "step",
    )


def _gained_figure(shared: SharedPairs) -> list[TitledFigure]:
    """How much further apart B holds each shared pair than A; none where that cannot be compared."""
    if shared.gained is None:
        return []
    share = percent(float((shared.gained > 0).mean()))
    mean = signed(float(shared.gained.mean()))
    return [
        histogram_figure(
            "Pair by pair",
            "gained",
            [("pairs", shared.gained, HELD_OUT)],
            "margin of B - margin of A, nats a token",
            f"Difference of the margins of each shared pair: mean {mean} nats a token.",
            f"Right of 0 B holds the pair further apart than A: {share} of them (n = {shared.pairs:,}).",
        )
    ]
