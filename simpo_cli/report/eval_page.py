"""The result of `simpo eval` as one HTML file: it opens offline and runs no script."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import simpo_cli
from simpo_cli.evaluate.matching import swapped_in_words
from simpo_cli.report.eval_figures import bucket_figure, reliability_figure
from simpo_cli.report.eval_remarks import difference_remarks, failure_in_words, remarks
from simpo_cli.report.eval_view import difference_rows, eval_rows
from simpo_cli.report.page import render
from simpo_cli.report.table import Row
from simpo_cli.report.verdict import gain_in_words


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
