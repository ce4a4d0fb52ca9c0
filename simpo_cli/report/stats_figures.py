"""The figures of the audit's page."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from simpo_cli.audit.examine import Examination
from simpo_cli.audit.lengths import histogram
from simpo_cli.report.svg import CHOSEN, INK, REJECTED, draw_svg


def length_figure(examination: Examination, unit: str) -> str:
    """How long the chosen and the rejected responses are, up to the 99th percentile of both."""
    chosen, rejected = examination.chosen_len, examination.rejected_len
    high = float(np.percentile(np.concatenate([chosen, rejected]), 99)) or 1.0

    def draw(axes: Axes) -> None:
        for values, colour, name in ((chosen, CHOSEN, "chosen"), (rejected, REJECTED, "rejected")):
            shape = histogram(values, low=0.0, high=high)
            axes.stairs(shape.hist, shape.bin_edges, color=colour, linewidth=1.6, label=name)
        axes.set_xlabel(f"{unit} of the response (the last bin also holds what is longer)")
        axes.set_ylabel("pairs")
        axes.set_xlim(0, high)
        axes.legend()

    return draw_svg(draw, "lengths", "Histogram of the lengths of chosen and rejected responses")


def difference_figure(examination: Examination, unit: str) -> str:
    """Chosen minus rejected length, between its 99th percentiles."""
    difference = examination.chosen_len - examination.rejected_len
    reach = float(np.percentile(np.abs(difference), 99)) or 1.0

    def draw(axes: Axes) -> None:
        shape = histogram(difference, low=-reach, high=reach)
        axes.stairs(shape.hist, shape.bin_edges, fill=True, color=CHOSEN, alpha=0.7)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel(f"chosen - rejected, {unit} (the outermost bins also hold what lies beyond)")
        axes.set_ylabel("pairs")

    return draw_svg(draw, "difference", "Histogram of chosen minus rejected length")


def surface_figure(weights: Mapping[str, float]) -> str:
    """What the surface-only classifier goes by."""
    ordered = sorted(weights.items(), key=lambda item: abs(item[1]))

    def draw(axes: Axes) -> None:
        values = [weight for _, weight in ordered]
        colours = [CHOSEN if weight >= 0 else REJECTED for weight in values]
        axes.barh([name for name, _ in ordered], values, color=colours, height=0.7)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel("weight: to the right, more of it speaks for chosen")

    return draw_svg(draw, "surface", "Weights of the surface-only classifier", height=3.4)
