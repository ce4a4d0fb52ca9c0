"""The figures of a run's page: curves by step, and what became of each held-out pair."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from simpo_cli.report.run_files import Row, RunFiles
from simpo_cli.report.run_tables import LengthRow
from simpo_cli.report.svg import CHOSEN, FAINT, HELD_OUT, INK, REJECTED, draw_svg
from simpo_cli.report.text import fixed, percent

MOST_POINTS = 300
"""Of a curve; more steps than that are averaged in groups."""
_WINDOW = 1 / 25  # of the curve, for the smoothed line
_NUM_BINS = 30
_SIZE: dict[str, Any] = {"width": 3.3, "height": 2.1}

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figure:
    """A titled figure; `caption` is read below it."""

    title: str
    svg: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """One number by step."""

    steps: Floats
    values: Floats

    @classmethod
    def of(cls, rows: Sequence[Row], key: str) -> "Curve":
        """The rows that hold a finite number under `key`."""
        points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float))]
        steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
        finite = np.isfinite(values)
        return cls(steps[finite], values[finite])

    def __len__(self) -> int:
        return len(self.steps)

    def thinned(self) -> "Curve":
        """At most MOST_POINTS points, each the mean of its neighbours."""
        if len(self) <= MOST_POINTS:
            return self
        groups = np.array_split(np.arange(len(self)), MOST_POINTS)
        return Curve(*(np.array([column[group].mean() for group in groups]) for column in (self.steps, self.values)))

    def smoothed(self) -> "Curve":
        """Each point the mean of those within a fiftieth of the curve before and after it."""
        reach = max(1, round(len(self) * _WINDOW / 2))
        sums = np.concatenate([[0.0], np.cumsum(self.values)])
        at = np.arange(len(self))
        low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(self))
        return Curve(self.steps, (sums[high] - sums[low]) / (high - low))

    def told(self, name: str, show: Callable[[float], str]) -> str:
        """The curve in words."""
        if not len(self):
            return f"{name}: nothing yet"
        first, last = show(float(self.values[0])), show(float(self.values[-1]))
        low, high = show(float(self.values.min())), show(float(self.values.max()))
        if len(self) == 1:
            return f"{name} {first} at step {self.steps[0]:.0f}"
        between = f"from {first} at step {self.steps[0]:.0f} to {last} at step {self.steps[-1]:.0f}"
        return f"{name} {between}, never under {low} or over {high}"


def training_figures(run: RunFiles) -> list[Figure]:
    """Curves of metrics.jsonl and evals.jsonl; empty where no step was taken."""
    if not run.metrics:
        return []
    gamma = None if run.recipe is None else run.recipe.loss.margin
    limit = None if run.recipe is None else run.recipe.train.max_grad_norm
    figures = [
        _curve(run, "Loss", "loss", _three, held_out="loss"),
        _accuracy(run),
        _curve(run, "Reward margin", "rewards/margins", _two, held_out="margin", line=gamma, line_name="gamma"),
        _log_probs(run),
    ]
    if len(run.evals) > 1:
        figures.append(_drift(run))
    return [
        *figures,
        _curve(run, "Gradient norm", "grad_norm", _two, line=limit, line_name="max_grad_norm"),
        _curve(run, "Learning rate", "learning_rate", lambda rate: f"{rate:.2g}", is_exact=True),
        _curve(run, "Tokens a second", "tokens_per_second", lambda speed: f"{speed:,.0f}", from_zero=True),
    ]


def pair_figures(run: RunFiles) -> list[Figure]:
    """What training did to each held-out pair; empty where that is not known."""
    if not run.pairs:
        return []
    columns = {
        name: np.array([row[name] for row in run.pairs], dtype=np.float64)
        for name in ("chosen_before", "rejected_before", "chosen_after", "rejected_after")
    }
    figures = []
    if run.recipe is not None:
        beta, gamma = run.recipe.loss.beta, run.recipe.loss.margin
        before = beta * (columns["chosen_before"] - columns["rejected_before"])
        after = beta * (columns["chosen_after"] - columns["rejected_after"])
        figures.append(_margins(before, after, gamma))
    chosen = columns["chosen_after"] - columns["chosen_before"]
    rejected = columns["rejected_after"] - columns["rejected_before"]
    return [*figures, _changes(chosen, rejected)]


# Curves


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
        _draw_training(axes, curve, is_exact=is_exact)
        if scored is not None:
            _draw_held_out(axes, scored)
        if line is not None:
            _draw_level(axes, line, line_name)
        if from_zero:
            axes.set_ylim(bottom=0)
        _finish(axes, run, has_legend=held_out is not None or line is not None)

    return Figure(title, draw_svg(draw, key, f"{title}. {'; '.join(told)}.", **_SIZE))


def _accuracy(run: RunFiles) -> Figure:
    curve, scored = Curve.of(run.metrics, "rewards/accuracies"), Curve.of(run.evals, "accuracy")
    told = [curve.told("Training:", percent)]
    if len(scored):
        told.append(scored.told("held-out:", percent))

    def draw(axes: Axes) -> None:
        _draw_training(axes, curve)
        if run.evals:
            low, high = Curve.of(run.evals, "accuracy_low"), Curve.of(run.evals, "accuracy_high")
            axes.fill_between(scored.steps, low.values, high.values, color=HELD_OUT, alpha=0.2, linewidth=0)
            if len(scored) == 1:
                axes.vlines(scored.steps, low.values, high.values, color=HELD_OUT, alpha=0.4, linewidth=3)
            _draw_held_out(axes, scored)
        _draw_level(axes, 0.5, "a coin")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
        axes.set_ylim(top=1.02)
        _finish(axes, run, has_legend=True)

    svg = draw_svg(draw, "accuracy", f"Accuracy. {'; '.join(told)}.", **_SIZE)
    return Figure("Accuracy", svg, "Band: 95 % interval of the held-out pairs." if run.evals else "")


def _log_probs(run: RunFiles) -> Figure:
    chosen, rejected = Curve.of(run.metrics, "logps/chosen"), Curve.of(run.metrics, "logps/rejected")
    told = f"{chosen.told('Chosen:', _three)}; {rejected.told('rejected:', _three)}"

    def draw(axes: Axes) -> None:
        for curve, colour, name in ((chosen, CHOSEN, "chosen"), (rejected, REJECTED, "rejected")):
            smooth = curve.smoothed().thinned()
            axes.plot(smooth.steps, smooth.values, color=colour, linewidth=1.5, label=name, **_dot(smooth))
        _finish(axes, run, has_legend=True)

    svg = draw_svg(draw, "log-probs", f"Log-probs of training batches. {told}.", **_SIZE)
    return Figure("Log-probs of the batches", svg, "Nats a token; batches hold different pairs.")


def _drift(run: RunFiles) -> Figure:
    chosen, rejected = Curve.of(run.evals, "logps/chosen_delta"), Curve.of(run.evals, "logps/rejected_delta")
    told = f"{chosen.told('Chosen:', _signed)}; {rejected.told('rejected:', _signed)}"

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=FAINT, linewidth=0.8)
        for curve, colour, name in ((chosen, CHOSEN, "chosen"), (rejected, REJECTED, "rejected")):
            axes.plot(curve.steps, curve.values, color=colour, linewidth=1.5, marker="o", markersize=3, label=name)
        _finish(axes, run, has_legend=True)

    svg = draw_svg(draw, "drift", f"Change of log-probs since the start, on the probe. {told}.", **_SIZE)
    return Figure(
        "Drift", svg, f"Change since step 0 on the same {run.evals[-1]['probe_pairs']} held-out pairs, nats a token."
    )


def _draw_training(axes: Axes, curve: Curve, *, is_exact: bool = False) -> None:
    """Every step faintly and its running mean; a number that is set and not measured needs no mean."""
    raw = curve.thinned()
    if is_exact:
        axes.plot(raw.steps, raw.values, color=INK, linewidth=1.5, **_dot(raw))
        return
    axes.plot(raw.steps, raw.values, color=INK, alpha=0.25, linewidth=0.8)
    smooth = curve.smoothed().thinned()
    axes.plot(smooth.steps, smooth.values, color=INK, linewidth=1.5, label="training", **_dot(smooth))


def _draw_held_out(axes: Axes, scored: Curve) -> None:
    if len(scored):
        style: dict[str, Any] = {"marker": "o", "markersize": 3.5, "label": "held out"}
        axes.plot(scored.steps, scored.values, color=HELD_OUT, linewidth=1.3, **style)


def _draw_level(axes: Axes, level: float, name: str) -> None:
    axes.axhline(level, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label=name)


def _dot(curve: Curve) -> dict[str, Any]:
    """A curve of one point is a dot."""
    return {"marker": "o", "markersize": 3} if len(curve) == 1 else {}


def _finish(axes: Axes, run: RunFiles, *, has_legend: bool) -> None:
    most = max(run.steps_done, 1)
    axes.set_xlim(-0.02 * most, 1.02 * most)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if not isinstance(axes.yaxis.get_major_formatter(), FuncFormatter) and max(np.abs(axes.get_ylim())) >= 1000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("step")
    if has_legend:
        _legend(axes)


def _legend(axes: Axes) -> None:
    """Above the axes, where it hides no curve."""
    style: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.98), "borderaxespad": 0.0}
    axes.legend(fontsize=8, ncols=3, handlelength=1.3, handletextpad=0.5, columnspacing=1.1, **style)


# Pairs


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
        _legend(axes)

    told = (
        f"Margins of the held-out pairs: mean {fixed(float(before.mean()), 2)} before and "
        f"{fixed(float(after.mean()), 2)} after; past gamma {past[0]} before and {past[1]} after."
    )
    caption = f"Right of 0 the pair is right; past gamma: {past[0]} before, {past[1]} after (n = {len(before):,})."
    return Figure("Margins of held-out pairs", draw_svg(draw, "margins", told, **_SIZE), caption)


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
        _legend(axes)

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
        _legend(axes)

    told = (
        f"Change of the log-probs of the held-out pairs: chosen {_signed(float(chosen.mean()))} and rejected "
        f"{_signed(float(rejected.mean()))} nats a token on average."
    )
    caption = (
        f"Mean {_signed(float(chosen.mean()))} for chosen, {_signed(float(rejected.mean()))} for rejected; "
        f"chosen fell in {fell} of the pairs (n = {len(chosen):,})."
    )
    return Figure("What training did to each response", draw_svg(draw, "changes", told, **_SIZE), caption)


def _draw_histogram(axes: Axes, values: Floats, low: float, high: float, colour: str, name: str) -> None:
    """Counts in bins of equal width; what lies beyond the bounds counts in the outermost ones."""
    counts, edges = np.histogram(np.clip(values, low, high), bins=_NUM_BINS, range=(low, high))
    axes.stairs(counts, edges, color=colour, fill=True, alpha=0.18)
    axes.stairs(counts, edges, color=colour, linewidth=1.4, label=name)


def _two(value: float) -> str:
    return fixed(value, 2)


def _three(value: float) -> str:
    return fixed(value, 3)


def _signed(value: float) -> str:
    return f"{value:+z.3f}"
