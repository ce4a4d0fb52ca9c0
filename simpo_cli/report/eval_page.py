"""The result of `simpo eval` as one HTML file with figures: it opens offline and runs no script."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from simpo_cli import __version__
from simpo_cli.evaluate.tables import (
    difference_table,
    eval_table,
    failure_in_words,
    gain_in_words,
    seeds_table,
    span_of,
    swapped_in_words,
)
from simpo_cli.formatting import Cell, percent
from simpo_cli.report.figures import CHOSEN, FAINT, INK, TitledFigure, draw_svg
from simpo_cli.report.page import Section, render
from simpo_cli.table import Row, Table


def eval_page(result: Mapping[str, Any]) -> str:
    """The page of what `simpo eval --json` prints, for one model or several."""
    evaluations = result.get("evaluations", [result])
    models = ", ".join(one["model"] for one in evaluations)
    failed = [f"Not scored: {failure_in_words(failure)}" for failure in result.get("failed", [])]
    return render(
        "sections.html.jinja",
        title=f"simpo eval: {models}",
        heading="simpo eval",
        sections=[
            Section("", alerts=failed, tone="error"),
            *(_model(one, f"model{number}") for number, one in enumerate(evaluations)),
            *map(_comparison, result.get("comparisons", [])),
            *(Section("one recipe, several seeds", tables=[seeds_table(group)]) for group in result.get("seeds", [])),
        ],
        end=f"on {evaluations[0]['data']} · simpo {__version__}",
    )


def _model(one: Mapping[str, Any], name: str) -> Section:
    failed = one["not_compared"]
    return Section(
        title=one["model"],
        verdict="" if one["difference"] is None else gain_in_words({**one, "before": one["baseline"], "after": one}),
        alerts=[f"Not compared with the baseline: {failure_in_words(failed)}"] if failed else [],
        tables=[eval_table(one)],
        figures=[_reliability_figure(one, name), *_bucket_figure(one, name)],
    )


def _comparison(one: Mapping[str, Any]) -> Section:
    (first, second), difference = one["models"], one["difference"]
    recipes = [Row(key["key"], tuple(Cell(str(value)) for value in key["values"])) for key in one["recipes"] or []]
    table = Table(("first", "second"), recipes, title="what the recipes say differently")
    return Section(
        title=f"{second} less {first}",
        verdict="" if difference else "They have no pair in common, so they cannot be compared.",
        alerts=list(filter(None, [swapped_in_words(one["swapped"])])),
        tables=[] if difference is None else [difference_table(difference)],
        texts=[table] if recipes else [],
    )


def _reliability_figure(result: Mapping[str, Any], name: str) -> TitledFigure:
    """How often the model is right where it is so sure, beside the diagonal of one that is as right as it is sure."""
    bins = result["calibration"]["bins"]

    def draw(axes: Axes) -> None:
        axes.plot([0.5, 1.0], [0.5, 1.0], color=FAINT, linewidth=0.8)
        _draw_intervals(axes, [one["confidence"] for one in bins], [one["accuracy"] for one in bins])
        axes.set_xlim(0.49, 1.01)
        axes.set_xlabel("confidence, sigmoid of the margin")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))

    words = "; ".join(f"{percent(one['confidence'])} sure, {percent(one['accuracy']['value'])} right" for one in bins)
    return TitledFigure("", draw_svg(draw, f"{name}-reliability", f"Accuracy by confidence: {words}", width=3.6))


def _bucket_figure(result: Mapping[str, Any], name: str) -> list[TitledFigure]:
    """Accuracy by how much longer the chosen response is; none where all pairs differ alike."""
    buckets = [one for one in result["length"]["buckets"] if one["accuracy"] is not None]
    if len(buckets) < 2:
        return []
    labels = [span_of(one).replace(" to ", " to\n") for one in buckets]
    shares = [one["accuracy"] for one in buckets]

    def draw(axes: Axes) -> None:
        axes.axhline(0.5, color=FAINT, linewidth=0.8)
        _draw_intervals(axes, list(range(len(buckets))), shares)
        axes.set_xticks(range(len(buckets)), labels)
        axes.set_xlim(-0.5, len(buckets) - 0.5)
        axes.set_xlabel("chosen - rejected, tokens")

    words = "; ".join(f"{label}: {percent(one['value'])}" for label, one in zip(labels, shares, strict=True))
    return [TitledFigure("", draw_svg(draw, f"{name}-length", f"Accuracy by difference in length: {words}", width=3.6))]


def _draw_intervals(axes: Axes, places: Sequence[float], shares: Sequence[Mapping[str, Any]]) -> None:
    """Points with their 95 % intervals."""
    reach = [[abs(share["value"] - share["ci"][end]) for share in shares] for end in (0, 1)]
    values = [share["value"] for share in shares]
    axes.errorbar(places, values, yerr=reach, fmt="o", color=CHOSEN, ecolor=INK, elinewidth=0.8, markersize=4)
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("right")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
