"""Figures of the pages: small inline SVG in the page's own colours, the same bytes for the same numbers;
numbers by step as curves.

Each carries a sentence that says what can be seen, for those who cannot see it.
"""

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from simpo_cli.formatting import fixed
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
SIZE: dict[str, Any] = {"width": 3.3, "height": 2.1}
"""Of a figure in a grid of three."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TitledFigure:
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


def draw_training(axes: Axes, curve: Curve, *, is_exact: bool = False) -> None:
    """Every step faintly and its running mean; a number that is set and not measured needs no mean."""
    raw = curve.thinned()
    if is_exact:
        axes.plot(raw.steps, raw.values, color=INK, linewidth=1.5, **dot(raw))
        return
    axes.plot(raw.steps, raw.values, color=INK, alpha=0.25, linewidth=0.8)
    smooth = curve.smoothed().thinned()
    axes.plot(smooth.steps, smooth.values, color=INK, linewidth=1.5, label="training", **dot(smooth))


def draw_held_out(axes: Axes, scored: Curve) -> None:
    if len(scored):
        style: dict[str, Any] = {"marker": "o", "markersize": 3.5, "label": "held out"}
        axes.plot(scored.steps, scored.values, color=HELD_OUT, linewidth=1.3, **style)


def draw_level(axes: Axes, level: float, name: str) -> None:
    axes.axhline(level, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label=name)


def dot(curve: Curve) -> dict[str, Any]:
    """A curve of one point is a dot."""
    return {"marker": "o", "markersize": 3} if len(curve) == 1 else {}


def finish(axes: Axes, most: float, *, has_legend: bool, label: str = "step") -> None:
    """Steps from 0 to `most` along the bottom."""
    most = max(most, 1)
    axes.set_xlim(-0.02 * most, 1.02 * most)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if not isinstance(axes.yaxis.get_major_formatter(), FuncFormatter) and max(np.abs(axes.get_ylim())) >= 1000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(label)
    if has_legend:
        legend(axes)


def legend(axes: Axes) -> None:
    """Above the axes, where it hides no curve."""
    style: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.98), "borderaxespad": 0.0}
    axes.legend(fontsize=8, ncols=3, handlelength=1.3, handletextpad=0.5, columnspacing=1.1, **style)


def two_digits(value: float) -> str:
    return fixed(value, 2)


def three_digits(value: float) -> str:
    return fixed(value, 3)


def signed(value: float) -> str:
    return f"{value:+z.3f}"
