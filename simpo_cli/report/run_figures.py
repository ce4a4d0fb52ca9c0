"""The curves of a run's page, by step."""

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from simpo_cli.formatting import percent
from simpo_cli.report.curves import (
    SIZE,
    Curve,
    Figure,
    dot,
    draw_held_out,
    draw_level,
    draw_training,
    finish,
    signed,
    three_digits,
    two_digits,
)
from simpo_cli.report.run_files import RunFiles
from simpo_cli.report.svg import CHOSEN, FAINT, HELD_OUT, REJECTED, draw_svg


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
