"""The figures of the page of `simpo eval`."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from simpo_cli.formatting import percent
from simpo_cli.report.eval_view import span_of
from simpo_cli.report.svg import CHOSEN, FAINT, INK, draw_svg


def reliability_figure(result: Mapping[str, Any], name: str) -> str:
    """How often the model is right where it is so sure, against the diagonal of a model that is as right as it is sure.

    Args:
        result: the document of one model.
        name: differs from figure to figure of a page.
    """
    bins = result["calibration"]["bins"]

    def draw(axes: Axes) -> None:
        axes.plot([0.5, 1.0], [0.5, 1.0], color=FAINT, linewidth=0.8)
        _with_intervals(axes, [one["confidence"] for one in bins], [one["accuracy"] for one in bins])
        axes.set_xlim(0.49, 1.01)
        axes.set_xlabel("confidence, sigmoid of the margin")
        axes.set_ylabel("right")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))

    told = "; ".join(f"{percent(one['confidence'])} sure, {percent(one['accuracy']['value'])} right" for one in bins)
    return draw_svg(draw, f"{name}-reliability", f"Accuracy by confidence: {told}", width=3.6)


def bucket_figure(result: Mapping[str, Any], name: str) -> str:
    """Accuracy by how much longer the chosen response is; empty where all pairs differ alike."""
    buckets = [one for one in result["length"]["buckets"] if one["accuracy"] is not None]
    if len(buckets) < 2:
        return ""
    labels = [span_of(one).replace(" to ", " to\n") for one in buckets]

    def draw(axes: Axes) -> None:
        axes.axhline(0.5, color=FAINT, linewidth=0.8)
        _with_intervals(axes, list(range(len(buckets))), [one["accuracy"] for one in buckets])
        axes.set_xticks(range(len(buckets)), labels)
        axes.set_xlim(-0.5, len(buckets) - 0.5)
        axes.set_xlabel("chosen - rejected, tokens")
        axes.set_ylabel("right")

    told = "; ".join(
        f"{label}: {percent(one['accuracy']['value'])}" for label, one in zip(labels, buckets, strict=True)
    )
    return draw_svg(draw, f"{name}-length", f"Accuracy by difference in length: {told}", width=3.6)


def _with_intervals(axes: Axes, places: Sequence[float], shares: Sequence[Mapping[str, Any]]) -> None:
    """Points with their 95 % intervals."""
    values = [share["value"] for share in shares]
    reach = [
        [value - share["ci"][0] for value, share in zip(values, shares, strict=True)],
        [share["ci"][1] - value for value, share in zip(values, shares, strict=True)],
    ]
    axes.errorbar(places, values, yerr=reach, fmt="o", color=CHOSEN, ecolor=INK, elinewidth=0.8, markersize=4)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
