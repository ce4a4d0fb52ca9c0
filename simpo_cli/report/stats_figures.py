"""The figures of the audit's page: small inline SVG in the page's own colours, the same bytes for the same numbers."""

import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simpo_cli.audit.examine import Examination
from simpo_cli.audit.lengths import histogram

# Stand-ins that the page's style sheet gives a colour of the light or the dark theme
_INK, _CHOSEN, _REJECTED = "#010203", "#010204", "#010205"
_COLOURS = {_INK: "currentColor", _CHOSEN: "var(--chosen)", _REJECTED: "var(--rejected)"}

_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}


def length_figure(examination: Examination, unit: str) -> str:
    """How long the chosen and the rejected responses are, up to the 99th percentile of both."""
    chosen, rejected = examination.chosen_len, examination.rejected_len
    high = float(np.percentile(np.concatenate([chosen, rejected]), 99)) or 1.0

    def draw(axes: Axes) -> None:
        for values, colour, name in ((chosen, _CHOSEN, "chosen"), (rejected, _REJECTED, "rejected")):
            shape = histogram(values, low=0.0, high=high)
            axes.stairs(shape.hist, shape.bin_edges, color=colour, linewidth=1.6, label=name)
        axes.set_xlabel(f"{unit} of the response (the last bin also holds what is longer)")
        axes.set_ylabel("pairs")
        axes.set_xlim(0, high)
        axes.legend()

    return _svg(draw, "lengths", "Histogram of the lengths of chosen and rejected responses")


def difference_figure(examination: Examination, unit: str) -> str:
    """Chosen minus rejected length, between its 99th percentiles."""
    difference = examination.chosen_len - examination.rejected_len
    reach = float(np.percentile(np.abs(difference), 99)) or 1.0

    def draw(axes: Axes) -> None:
        shape = histogram(difference, low=-reach, high=reach)
        axes.stairs(shape.hist, shape.bin_edges, fill=True, color=_CHOSEN, alpha=0.7)
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_xlabel(f"chosen - rejected, {unit} (the outermost bins also hold what lies beyond)")
        axes.set_ylabel("pairs")

    return _svg(draw, "difference", "Histogram of chosen minus rejected length")


def surface_figure(weights: Mapping[str, float]) -> str:
    """What the surface-only classifier goes by."""
    ordered = sorted(weights.items(), key=lambda item: abs(item[1]))

    def draw(axes: Axes) -> None:
        values = [weight for _, weight in ordered]
        colours = [_CHOSEN if weight >= 0 else _REJECTED for weight in values]
        axes.barh([name for name, _ in ordered], values, color=colours, height=0.7)
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_xlabel("weight: to the right, more of it speaks for chosen")

    return _svg(draw, "surface", "Weights of the surface-only classifier", height=3.4)


def _svg(draw: Callable[[Axes], None], name: str, title: str, *, height: float = 2.3) -> str:
    """One figure as an SVG element without ids that another could have too.

    Args:
        draw: puts the data on the axes.
        name: differs from figure to figure.
        title: what those read who cannot see it.
        height: in inches of 72 points; the page scales it.
    """
    settings: Any = {**_SETTINGS, "svg.hashsalt": name}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(7.2, height), layout="constrained")
        draw(figure.subplots())
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    for stand_in, colour in _COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return svg.rstrip()
