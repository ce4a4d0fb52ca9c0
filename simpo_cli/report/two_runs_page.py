"""A page of two runs: which did better on the pairs that both held out, their curves, and what was done otherwise."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

import simpo_cli
from simpo_cli.formatting import Cell, change_cell, number_cell, percent, points_cell, share_cell
from simpo_cli.report.figures import (
    FAINT,
    HELD_OUT,
    INK,
    SIZE,
    Curve,
    dot,
    draw_level,
    draw_svg,
    finish,
    signed,
    three_digits,
    two_digits,
)
from simpo_cli.report.figures import TitledFigure as Figure
from simpo_cli.report.page import render, require_replaceable_page, write_page
from simpo_cli.report.run_files import Row, RunFiles, read_run
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
from simpo_cli.report.verdict import verdict

_NUM_BINS = 30
_COLOURS = {"A": INK, "B": HELD_OUT}

Show = Callable[[float], str]


def curve_figures(runs: TwoRuns) -> list[Figure]:
    """Curves of both runs by step, or by pairs seen where their steps hold different numbers of pairs."""
    held_out = [
        _figure(runs, "Held-out accuracy", "accuracy", percent, of_evals=True),
        _figure(runs, "Held-out loss", "loss", three_digits, of_evals=True),
        _figure(runs, "Held-out margin", "margin", two_digits, of_evals=True),
        _figure(runs, "Drift of chosen log-probs", "logps/chosen_delta", signed, of_evals=True),
    ]
    training = [
        _figure(runs, "Training loss", "loss", three_digits),
        _figure(runs, "Training margin", "rewards/margins", two_digits),
        _figure(runs, "Gradient norm", "grad_norm", two_digits),
        _figure(runs, "Learning rate", "learning_rate", lambda rate: f"{rate:.2g}", is_exact=True),
    ]
    return [figure for figure in (*held_out, *training) if figure is not None]


def gained_figure(runs: TwoRuns) -> Figure | None:
    """How much further apart B holds each shared pair than A; None where that cannot be compared."""
    if runs.shared is None or not runs.shared.same_tokens:
        return None
    gained = runs.shared.gained
    low, high = (float(bound) for bound in np.percentile(np.append(gained, 0.0), [0.5, 99.5]))
    high = max(high, low + 1e-9)
    share = percent(float((gained > 0).mean()))

    def draw(axes: Axes) -> None:
        counts, edges = np.histogram(np.clip(gained, low, high), bins=_NUM_BINS, range=(low, high))
        axes.stairs(counts, edges, color=HELD_OUT, fill=True, alpha=0.18)
        axes.stairs(counts, edges, color=HELD_OUT, linewidth=1.4)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel("margin of B - margin of A, nats a token")
        axes.set_ylabel("pairs")

    told = f"Difference of the margins of each shared pair: mean {signed(float(gained.mean()))} nats a token."
    caption = f"Right of 0 B holds the pair further apart than A: {share} of them (n = {len(gained):,})."
    return Figure("Pair by pair", draw_svg(draw, "gained", told, **SIZE), caption)


def _figure(
    runs: TwoRuns, title: str, key: str, show: Show, *, of_evals: bool = False, is_exact: bool = False
) -> Figure | None:
    """One number of both runs; None where neither has it."""
    by_pairs = runs.first.receipt["plan"]["pairs_per_step"] != runs.second.receipt["plan"]["pairs_per_step"]
    curves, rows, most = {}, {}, 0.0
    for name, run in (("A", runs.first), ("B", runs.second)):
        scale = int(run.receipt["plan"]["pairs_per_step"]) if by_pairs else 1
        rows[name] = _scaled(run, of_evals, scale)
        curves[name] = Curve.of(rows[name], key)
        most = max(most, scale * run.steps_done)
    is_drift = key.endswith("_delta")  # which begins at 0 and says something from its second point on
    if not any(len(curve) > is_drift for curve in curves.values()):
        return None

    def draw(axes: Axes) -> None:
        for name, curve in curves.items():
            shown = curve if of_evals or is_exact else curve.smoothed()
            _draw(axes, shown, name, of_evals=of_evals)
            if key == "accuracy":
                _draw_band(axes, rows[name], name)
        if key == "accuracy":
            draw_level(axes, 0.5, "a coin")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
        elif is_drift:
            axes.axhline(0, color=FAINT, linewidth=0.8)
        elif is_exact:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # no power above the axes
        finish(axes, most, has_legend=True, label="pairs seen" if by_pairs else "step")

    told = "; ".join(curve.told(f"{name}:", show) for name, curve in curves.items())
    if by_pairs:
        told += "; steps are counted in pairs seen"
    return Figure(title, draw_svg(draw, f"two-{title}", f"{title}. {told}.", **SIZE))


def _scaled(run: RunFiles, of_evals: bool, scale: int) -> Sequence[Row]:
    rows = run.evals if of_evals else run.metrics
    return rows if scale == 1 else [{**row, "step": row["step"] * scale} for row in rows]


def _draw(axes: Axes, curve: Curve, name: str, *, of_evals: bool) -> None:
    if not len(curve):
        return
    thin = curve if of_evals else curve.thinned()
    style = {"marker": "o", "markersize": 3.0} if of_evals else dot(thin)
    axes.plot(thin.steps, thin.values, color=_COLOURS[name], linewidth=1.4, label=name, **style)


def _draw_band(axes: Axes, rows: Sequence[Row], name: str) -> None:
    low, high = Curve.of(rows, "accuracy_low"), Curve.of(rows, "accuracy_high")
    if len(low) == len(high):
        axes.fill_between(low.steps, low.values, high.values, color=_COLOURS[name], alpha=0.15, linewidth=0)


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
