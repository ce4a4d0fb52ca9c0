"""Numbers by step: the curve, and how it is drawn and told on every page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from simpo_cli.formatting import fixed
from simpo_cli.report.run_files import Row
from simpo_cli.report.svg import FAINT, HELD_OUT, INK

MOST_POINTS = 300
"""Of a curve; more steps than that are averaged in groups."""
_WINDOW = 1 / 25  # of the curve, for the smoothed line
SIZE: dict[str, Any] = {"width": 3.3, "height": 2.1}
"""Of a figure in a grid of three."""

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
