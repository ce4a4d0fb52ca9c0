"""The figures of a page of two runs: their curves over each other, and what became of each shared pair."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from simpo_cli.formatting import percent
from simpo_cli.report.curves import SIZE, Curve, Figure, dot, draw_level, finish, signed, three_digits, two_digits
from simpo_cli.report.run_files import Row, RunFiles
from simpo_cli.report.svg import FAINT, HELD_OUT, INK, draw_svg
from simpo_cli.report.two_runs import TwoRuns

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
