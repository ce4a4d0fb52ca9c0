"""The result of `simpo eval` as one HTML file with figures: it opens offline and runs no script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

import simpo_cli
from simpo_cli.evaluate.matching import swapped_in_words
from simpo_cli.formatting import percent
from simpo_cli.report.eval_remarks import difference_remarks, failure_in_words, remarks
from simpo_cli.report.eval_view import difference_rows, eval_rows, span_of
from simpo_cli.report.figures import CHOSEN, FAINT, INK, draw_svg
from simpo_cli.report.page import render
from simpo_cli.report.terminal import Row
from simpo_cli.report.verdict import gain_in_words


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


@dataclass(frozen=True, slots=True)
class Section:
    """One model, or two of them against one another; `failure` says of which other one it could not be told."""

    title: str
    verdict: str
    failure: str
    rows: list[Row]
    remarks: list[str]
    figures: list[str]
    recipes: list[tuple[str, str, str]]


def eval_page(result: Mapping[str, Any]) -> str:
    """The page.

    Args:
        result: what `simpo eval --json` prints, for one model or several.
    """
    evaluations = result.get("evaluations", [result])
    sections = [_model(one, f"model{number}") for number, one in enumerate(evaluations)]
    sections += [_comparison(one) for one in result.get("comparisons", [])]
    return render(
        "eval.html.jinja",
        sections=sections,
        failed=[failure_in_words(failure) for failure in result.get("failed", [])],
        data=evaluations[0]["data"],
        models=[one["model"] for one in evaluations],
        version=simpo_cli.__version__,
    )


def _model(one: Mapping[str, Any], name: str) -> Section:
    verdict = ""
    if one["difference"] is not None:
        verdict = gain_in_words({"before": one["baseline"], "after": one, "difference": one["difference"]})
    figures = [reliability_figure(one, name), bucket_figure(one, name)]
    return Section(
        title=one["model"],
        verdict=verdict,
        failure=failure_in_words(one["not_compared"]) if one["not_compared"] else "",
        rows=eval_rows(one),
        remarks=remarks(one),
        figures=[figure for figure in figures if figure],
        recipes=[],
    )


def _comparison(one: Mapping[str, Any]) -> Section:
    first, second = one["models"]
    title, difference = f"{second} less {first}", one["difference"]
    recipes = [(told["key"], *(str(value) for value in told["values"])) for told in one["recipes"] or []]
    swapped = list(filter(None, [swapped_in_words(one["swapped"])]))
    if difference is None:
        said = "They have no pair in common, so they cannot be compared."
        return Section(title, verdict=said, failure="", rows=[], remarks=swapped, figures=[], recipes=recipes)
    return Section(
        title=title,
        verdict="",
        failure="",
        rows=difference_rows(difference),
        remarks=swapped + difference_remarks(difference),
        figures=[],
        recipes=recipes,
    )
