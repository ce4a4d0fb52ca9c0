"""Figures of the pages: small inline SVG in the page's own colours, the same bytes for the same numbers;
numbers by step as curves.

Each carries a sentence that says what can be seen, for those who cannot see it.
"""

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from simpo_cli.formatting import Measured, fixed, percent
from simpo_cli.report.run_files import Row

# Stand-ins that the page's style sheet gives a colour of the light or the dark theme
INK, CHOSEN, REJECTED, FAINT, HELD_OUT = "#010203", "#010204", "#010205", "#010206", "#010207"
_COLOURS = {
    INK: "currentColor",
    CHOSEN: "var(--chosen)",
    REJECTED: "var(--rejected)",
    FAINT: "var(--dim)",
    HELD_OUT: "var(--held-out)",
}

_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 9.0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def draw_svg(
    draw: Callable[[Axes], None], name: str, description: str, *, width: float = 7.2, height: float = 2.3
) -> str:
    """One figure as an SVG element without ids that another could have too.

    Args:
        draw: puts the data on the axes.
        name: differs from figure to figure of a page.
        description: what those read who cannot see it; any text.
        width, height: in inches of 72 points; the page scales it, and text with it.
    """
    settings: Any = {**_SETTINGS, "svg.hashsalt": name}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        written = io.StringIO()
        # not savefig: that draws once to lay the figure out, which drawing does by itself, and once more to write it
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(written, metadata={"Date": None, "Creator": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}" ', 1)
    for stand_in, colour in _COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return svg.rstrip()


MOST_POINTS = 300
"""Of a curve; more steps than that are averaged in groups."""
_WINDOW = 1 / 25  # of the curve, for the smoothed line
_NUM_BINS = 30
_SIZE: dict[str, Any] = {"width": 3.3, "height": 2.1}  # of a figure in a grid of three

Floats = NDArray[np.float64]
Show = Callable[[float], str]
two_digits, three_digits, signed = partial(fixed, digits=2), partial(fixed, digits=3), "{:+z.3f}".format
LengthRow = tuple[str, Measured | None, Measured | None]  # kind of pairs, accuracy before, after; None of too few pairs


@dataclass(frozen=True, slots=True)
class TitledFigure:
    """A figure with its title; `caption` is read below it."""

    title: str
    svg: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """One number by step."""

    steps: Floats
    values: Floats

    @classmethod
    def of(cls, rows: Sequence[Row], key: str, scale: int = 1) -> "Curve":
        """The rows that hold a finite number under `key`; steps times `scale`."""
        points = [(scale * row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float))]
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

    def in_words(self, name: str, show: Show) -> str:
        """The curve as a sentence."""
        if not len(self):
            return f"{name}: nothing yet"
        first, last = show(float(self.values[0])), show(float(self.values[-1]))
        low, high = show(float(self.values.min())), show(float(self.values.max()))
        if len(self) == 1:
            return f"{name}: {first} at step {self.steps[0]:.0f}"
        between = f"from {first} at step {self.steps[0]:.0f} to {last} at step {self.steps[-1]:.0f}"
        return f"{name}: {between}, never under {low} or over {high}"


@dataclass(frozen=True, slots=True)
class Line:
    """A curve as it is drawn.

    `steps` are every step faintly and their running mean, `mean` that alone, `points` evaluations, `exact` a number
    that is set and not measured.
    """

    name: str
    curve: Curve
    colour: str = INK
    kind: Literal["steps", "mean", "points", "exact"] = "steps"
    band: tuple[Curve, Curve] | None = None  # the ends of the interval around it

    def draw(self, axes: Axes) -> None:
        style: dict[str, Any] = {"color": self.colour, "linewidth": 1.5, "label": self.name}
        curve = (self.curve if self.kind in ("points", "exact") else self.curve.smoothed()).thinned()
        if self.kind == "steps":
            raw = self.curve.thinned()
            axes.plot(raw.steps, raw.values, color=self.colour, alpha=0.25, linewidth=0.8)
        if self.kind == "points" or len(curve) == 1:
            style |= {"marker": "o", "markersize": 3.5}
        if self.band is not None and len(self.band[0]) == len(self.band[1]):
            low, high = self.band
            axes.fill_between(low.steps, low.values, high.values, color=self.colour, alpha=0.2, linewidth=0)
            if len(low) == 1:
                axes.vlines(low.steps, low.values, high.values, color=self.colour, alpha=0.4, linewidth=3)
        if len(curve):
            axes.plot(curve.steps, curve.values, **style)


def curve_figure(
    title: str,
    lines: Sequence[Line],
    show: Show,
    most: float,
    *,
    name: str = "",
    level: tuple[float, str] | None = None,
    caption: str = "",
    has_zero: bool = False,
    is_from_zero: bool = False,
    unit: str = "step",
) -> TitledFigure:
    """Numbers by step.

    Args:
        title, caption: what stands above it and below.
        lines: what is drawn.
        show: a value in words; shares have their own axis.
        most: steps of the bottom axis, or what `unit` says.
        name: differs from figure to figure of a page; the title if not given.
        level: where a level line is, and what it is called.
        has_zero, is_from_zero: whether 0 has a faint line, and whether it is the lowest value.
    """

    def draw(axes: Axes) -> None:
        for line in lines:
            line.draw(axes)
        if has_zero:
            axes.axhline(0, color=FAINT, linewidth=0.8)
        if level is not None:
            axes.axhline(level[0], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label=level[1])
        if show is percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
            axes.set_ylim(top=1.02)
        elif all(line.kind == "exact" for line in lines):
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # no power above the axes
        elif max(np.abs(axes.get_ylim())) >= 1000:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        if is_from_zero:
            axes.set_ylim(bottom=0)
        axes.set_xlim(-0.02 * max(most, 1), 1.02 * max(most, 1))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel(unit)
        if len(lines) > 1 or level is not None:
            _add_legend(axes)

    words = [line.curve.in_words(line.name, show) for line in lines if len(line.curve) or line.kind != "points"]
    if level is not None:
        words.append(f"{level[1]} is {show(level[0])}")
    if unit != "step":
        words.append(f"steps are counted in {unit}")
    sentence = "; ".join(words)
    description = f"{title}. {sentence[:1].upper()}{sentence[1:]}."
    return TitledFigure(title, draw_svg(draw, name or title, description, **_SIZE), caption)


def histogram_figure(
    title: str,
    name: str,
    groups: Sequence[tuple[str, Floats, str]],
    label: str,
    description: str,
    caption: str,
    *,
    level: tuple[float, str] | None = None,
) -> TitledFigure:
    """Numbers of pairs in bins of equal width; what lies beyond 99 % of them counts in the outermost ones.

    Args:
        title, name, caption, level: as of `curve_figure`.
        groups: name, (P,) values and colour of each.
        label: of the bottom axis.
        description: for those who cannot see it.
    """
    marks = [0.0] if level is None else [0.0, level[0]]
    low, high = np.percentile(np.concatenate([*(values for _, values, _ in groups), marks]), [0.5, 99.5]).tolist()
    high = max(high, low + 1e-9)

    def draw(axes: Axes) -> None:
        for group, values, colour in groups:
            counts, edges = np.histogram(np.clip(values, low, high), bins=_NUM_BINS, range=(low, high))
            axes.stairs(counts, edges, color=colour, fill=True, alpha=0.18)
            axes.stairs(counts, edges, color=colour, linewidth=1.4, label=group)
        axes.axvline(0, color=INK, linewidth=0.8)
        if level is not None:
            axes.axvline(level[0], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label=level[1])
        axes.set_xlabel(label)
        axes.set_ylabel("pairs")
        if len(groups) > 1:
            _add_legend(axes)

    return TitledFigure(title, draw_svg(draw, name, description, **_SIZE), caption)


def length_figures(lengths: Sequence[LengthRow]) -> list[TitledFigure]:
    """Accuracy with its interval by which response is the longer one, before and after; none without any pairs.

    A line a row; those of too few pairs keep their place.
    """
    rows = [(label, (before, after) if before and after else ()) for label, before, after in lengths]
    if not any(shares for _, shares in rows):
        return []
    words = []
    for label, shares in rows:
        percents = [percent(share["value"]) for share in shares]
        words.append(f"{label}: " + ("{} before, {} after".format(*percents) if shares else "too few"))

    def draw(axes: Axes) -> None:
        for at, (name, colour) in enumerate((("before", INK), ("after", HELD_OUT))):
            known = [(height, shares[at]) for height, (_, shares) in enumerate(reversed(rows)) if shares]
            values = [share["value"] for _, share in known]
            reach = [[abs(share["value"] - share["ci"][end]) for _, share in known] for end in (0, 1)]
            heights = [height + (0.14, -0.14)[at] for height, _ in known]
            axes.errorbar(values, heights, xerr=reach, color=colour, fmt="o", markersize=4, label=name)
        axes.axvline(0.5, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(rows)), [label for label, _ in reversed(rows)])
        axes.set_ylim(-0.5, len(rows) - 0.5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
        _add_legend(axes)

    description = f"Accuracy by length. {'; '.join(words)}."
    return [TitledFigure("", draw_svg(draw, "length", description, width=3.8, height=1.9))]


def _add_legend(axes: Axes) -> None:
    """Above the axes, where it hides no curve."""
    style: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.98), "borderaxespad": 0.0}
    axes.legend(fontsize=8, ncols=3, handlelength=1.3, handletextpad=0.5, columnspacing=1.1, **style)
