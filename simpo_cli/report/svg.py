"""Figures of the pages: small inline SVG in the page's own colours, the same bytes for the same numbers.

Each carries a sentence that says what can be seen, for those who cannot see it.
"""

import html
import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

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
