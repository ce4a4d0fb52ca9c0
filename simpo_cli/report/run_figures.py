"""The figures of a run's page: curves by step, and what became of each held-out pair."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from simpo_cli.formatting import fixed, percent
from simpo_cli.objective import Objective
from simpo_cli.report.figures import (
    CHOSEN,
    FAINT,
    HELD_OUT,
    INK,
    REJECTED,
    SIZE,
    Curve,
    Floats,
    dot,
    draw_held_out,
    draw_level,
    draw_svg,
    draw_training,
    finish,
    legend,
    signed,
    three_digits,
    two_digits,
)
from simpo_cli.report.figures import TitledFigure as Figure
from simpo_cli.report.run_files import RunFiles
from simpo_cli.report.run_tables import LengthRow, pair_column


def training_figures(run: RunFiles) -> list[Figure]:
    """Curves of metrics.jsonl and evals.jsonl; empty where no step was taken."""
    if not run.metrics:
        return []
    gamma = None if run.recipe is None else run.recipe.loss.margin
    limit = None if run.recipe is None else run.recipe.train.max_grad_norm
    return [
        _curve(run, "Loss", "loss", three_digits, held_out="loss"),
        _accuracy(run),
        _curve(run, "Reward margin", "rewards/margins", two_digits, held_out="margin", line=gamma, line_name="gamma"),
        _log_probs(run),
        _curve(run, "Gradient norm", "grad_norm", two_digits, line=limit, line_name="max_grad_norm"),
        _curve(run, "Learning rate", "learning_rate", lambda rate: f"{rate:.2g}", is_exact=True),
        _curve(run, "Tokens a second", "tokens_per_second", lambda speed: f"{speed:,.0f}", from_zero=True),
    ]


def _curve(
    run: RunFiles,
    title: str,
    key: str,
    show: Callable[[float], str],
    *,
    held_out: str | None = None,
    line: float | None = None,
    line_name: str = "",
    is_exact: bool = False,
    from_zero: bool = False,
) -> Figure:
    """One number of the steps, if wanted with the evaluations' number beside it and a level line."""
    curve = Curve.of(run.metrics, key)
    scored = Curve.of(run.evals, held_out) if held_out else None
    told = [curve.told("Training:" if held_out else "Value:", show)]
    if scored is not None and len(scored):
        told.append(scored.told("held-out:", show))
    if line is not None:
        told.append(f"{line_name} is {show(line)}")

    def draw(axes: Axes) -> None:
        draw_training(axes, curve, is_exact=is_exact)
        if scored is not None:
            draw_held_out(axes, scored)
        if line is not None:
            draw_level(axes, line, line_name)
        if from_zero:
            axes.set_ylim(bottom=0)
        finish(axes, run.steps_done, has_legend=held_out is not None or line is not None)

    return Figure(title, draw_svg(draw, key, f"{title}. {'; '.join(told)}.", **SIZE))


def _accuracy(run: RunFiles) -> Figure:
    curve, scored = Curve.of(run.metrics, "rewards/accuracies"), Curve.of(run.evals, "accuracy")
    told = [curve.told("Training:", percent)]
    if len(scored):
        told.append(scored.told("held-out:", percent))

    def draw(axes: Axes) -> None:
        draw_training(axes, curve)
        if run.evals:
            low, high = Curve.of(run.evals, "accuracy_low"), Curve.of(run.evals, "accuracy_high")
            axes.fill_between(scored.steps, low.values, high.values, color=HELD_OUT, alpha=0.2, linewidth=0)
            if len(scored) == 1:
                axes.vlines(scored.steps, low.values, high.values, color=HELD_OUT, alpha=0.4, linewidth=3)
            draw_held_out(axes, scored)
        draw_level(axes, 0.5, "a coin")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
        axes.set_ylim(top=1.02)
        finish(axes, run.steps_done, has_legend=True)

    svg = draw_svg(draw, "accuracy", f"Accuracy. {'; '.join(told)}.", **SIZE)
    return Figure("Accuracy", svg, "Band: 95 % interval of the held-out pairs." if run.evals else "")


def _log_probs(run: RunFiles) -> Figure:
    chosen, rejected = Curve.of(run.metrics, "logps/chosen"), Curve.of(run.metrics, "logps/rejected")
    told = f"{chosen.told('Chosen:', three_digits)}; {rejected.told('rejected:', three_digits)}"

    def draw(axes: Axes) -> None:
        for curve, colour, name in ((chosen, CHOSEN, "chosen"), (rejected, REJECTED, "rejected")):
            smooth = curve.smoothed().thinned()
            axes.plot(smooth.steps, smooth.values, color=colour, linewidth=1.5, label=name, **dot(smooth))
        finish(axes, run.steps_done, has_legend=True)

    svg = draw_svg(draw, "log-probs", f"Log-probs of training batches. {told}.", **SIZE)
    return Figure("Log-probs of the batches", svg, "Nats a token; batches hold different pairs.")


def drift_figure(run: RunFiles) -> Figure | None:
    """How log-probs moved on the fixed probe; None before the second evaluation."""
    if len(run.evals) < 2:
        return None
    chosen, rejected = Curve.of(run.evals, "logps/chosen_delta"), Curve.of(run.evals, "logps/rejected_delta")
    told = f"{chosen.told('Chosen:', signed)}; {rejected.told('rejected:', signed)}"

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=FAINT, linewidth=0.8)
        for curve, colour, name in ((chosen, CHOSEN, "chosen"), (rejected, REJECTED, "rejected")):
            axes.plot(curve.steps, curve.values, color=colour, linewidth=1.5, marker="o", markersize=3, label=name)
        finish(axes, run.steps_done, has_legend=True)

    svg = draw_svg(draw, "drift", f"Change of log-probs since the start, on the probe. {told}.", **SIZE)
    return Figure(
        "Drift during the run",
        svg,
        f"Change since step 0 on the same {run.evals[-1]['probe_pairs']} held-out pairs, nats a token.",
    )


_NUM_BINS = 30


def margin_figure(run: RunFiles) -> Figure | None:
    """Reward margins of the held-out pairs before and after; None where they, or the objective, are not known."""
    if not run.pairs or run.recipe is None:
        return None
    objective = Objective(run.recipe.loss)
    before, after = (
        objective.margin(pair_column(run, f"chosen_{when}"), pair_column(run, f"rejected_{when}"))
        for when in ("before", "after")
    )
    return _margins(before, after, objective.gamma)


def change_figure(run: RunFiles) -> Figure | None:
    """How much more or less likely each response of the held-out pairs became; None where that is not known."""
    if not run.pairs:
        return None
    return _changes(
        *(pair_column(run, f"{side}_after") - pair_column(run, f"{side}_before") for side in ("chosen", "rejected"))
    )


def _margins(before: Floats, after: Floats, gamma: float) -> Figure:
    both = np.concatenate([before, after, [0.0, gamma]])
    low, high = (float(bound) for bound in np.percentile(both, [0.5, 99.5]))
    high = max(high, low + 1e-9)
    past = [percent(float((margins > gamma).mean())) for margins in (before, after)]

    def draw(axes: Axes) -> None:
        for margins, colour, name in ((before, INK, "before"), (after, HELD_OUT, "after")):
            _draw_histogram(axes, margins, low, high, colour, name)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.axvline(gamma, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label="gamma")
        axes.set_xlabel("reward of chosen - reward of rejected")
        axes.set_ylabel("pairs")
        legend(axes)

    told = (
        f"Margins of the held-out pairs: mean {fixed(float(before.mean()), 2)} before and "
        f"{fixed(float(after.mean()), 2)} after; past gamma {past[0]} before and {past[1]} after."
    )
    caption = f"Right of 0 the pair is right; past gamma: {past[0]} before, {past[1]} after (n = {len(before):,})."
    return Figure("Margins of held-out pairs", draw_svg(draw, "margins", told, **SIZE), caption)


def length_figure(rows: Sequence[LengthRow]) -> Figure | None:
    """Accuracy with its interval by which response is the longer one, before and after; None without any pairs."""
    known = [(height, row) for height, row in enumerate(reversed(rows)) if row.before and row.after]
    if not known:
        return None

    def draw(axes: Axes) -> None:
        for name, colour, shift in (("before", INK, 0.14), ("after", HELD_OUT, -0.14)):
            shares = [getattr(row, name) for _, row in known]
            reach = [[abs(share["value"] - share["ci"][end]) for share in shares] for end in (0, 1)]
            values, heights = [share["value"] for share in shares], [height + shift for height, _ in known]
            axes.errorbar(values, heights, xerr=reach, color=colour, fmt="o", markersize=4, label=name)
        axes.axvline(0.5, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(rows)), [row.label for row in reversed(rows)])
        axes.set_ylim(-0.5, len(rows) - 0.5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
        legend(axes)

    told = "; ".join(f"{row.label}: {_told_share(row.before)} before, {_told_share(row.after)} after" for row in rows)
    return Figure("", draw_svg(draw, "length", f"Accuracy by length. {told}.", width=3.8, height=1.9))


def _told_share(measured: Mapping[str, Any] | None) -> str:
    return "too few pairs" if measured is None else percent(measured["value"])


def _changes(chosen: Floats, rejected: Floats) -> Figure:
    low, high = (float(bound) for bound in np.percentile(np.concatenate([chosen, rejected, [0.0]]), [0.5, 99.5]))
    high = max(high, low + 1e-9)
    fell = percent(float((chosen < 0).mean()))

    def draw(axes: Axes) -> None:
        for changes, colour, name in ((chosen, CHOSEN, "chosen"), (rejected, REJECTED, "rejected")):
            _draw_histogram(axes, changes, low, high, colour, name)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel("change of the log-prob, nats a token")
        axes.set_ylabel("pairs")
        legend(axes)

    told = (
        f"Change of the log-probs of the held-out pairs: chosen {signed(float(chosen.mean()))} and rejected "
        f"{signed(float(rejected.mean()))} nats a token on average."
    )
    caption = (
        f"Mean {signed(float(chosen.mean()))} for chosen, {signed(float(rejected.mean()))} for rejected; "
        f"chosen fell in {fell} of the pairs (n = {len(chosen):,})."
    )
    return Figure("What training did to each response", draw_svg(draw, "changes", told, **SIZE), caption)


def _draw_histogram(axes: Axes, values: Floats, low: float, high: float, colour: str, name: str) -> None:
    """Counts in bins of equal width; what lies beyond the bounds counts in the outermost ones."""
    counts, edges = np.histogram(np.clip(values, low, high), bins=_NUM_BINS, range=(low, high))
    axes.stairs(counts, edges, color=colour, fill=True, alpha=0.18)
    axes.stairs(counts, edges, color=colour, linewidth=1.4, label=name)
