"""The page of rounds: answers to held-out prompts as one curve with intervals, beside them what the pairs say."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simpo_cli import __version__
from simpo_cli.errors import UserError
from simpo_cli.formatting import percent
from simpo_cli.pairs.rounds import read_rounds
from simpo_cli.report.figures import CHOSEN, HELD_OUT, INK, Curve, Line, TitledFigure, curve_figure, three_digits
from simpo_cli.report.page import Section, render, write_page
from simpo_cli.report.pairs_view import conclusions, ledger_table, names_of, rounds_tables
from simpo_cli.run.folder import ROUNDS
from simpo_cli.table import Table


def holds_rounds(path: Path) -> bool:
    """Whether a folder is one of rounds."""
    return (path / ROUNDS).is_file()


def write_rounds_report(path: Path, output: Path | None = None) -> Path:
    """Write the page of a folder of rounds, by default RUN/report.html, and return its path.

    Raises:
        UserError: the folder is damaged, or the page cannot be written.
    """
    target = path / "report.html" if output is None else output
    document = read_rounds(path)
    try:
        page = rounds_page(document)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"does not hold rounds as we write them: {type(error).__name__}, {error}.",
            "Write it anew: the command that made it, with --resume.",
            where=str(path / ROUNDS),
        ) from error
    write_page(target, page, named="the report" if output is None else "--output")
    return target


def rounds_page(document: Mapping[str, Any]) -> str:
    """The page of what rounds.json holds."""
    said, stopped = conclusions(document), document["stopped"]
    tables, figures = rounds_tables(document), _figures(document)  # of the answers, then of the pairs
    return render(
        "sections.html.jinja",
        title=f"simpo pairs round: {document['name']}",
        heading=f"{document['name']}: pairs of its own answers",
        sections=[
            Section(
                "",
                verdict=said[0] if said else "no round is done yet",
                tone="warning" if stopped or not document["best"] else "good",
                alerts=[line for line in said if line.startswith("stopped")],
                tables=tables[:1],
                figures=figures["answers"],
                remarks=[
                    *(line for line in said if line.startswith("model")),
                    "Bands are 95 % intervals over prompts. One seed: another may end elsewhere. The best of several "
                    "rounds is chosen on the prompts that it is shown for, so it looks a little better than it is.",
                ],
            ),
            *(Section("Held-out pairs", tables=[table], figures=figures["pairs"]) for table in tables[1:]),
            Section("What became of the prompts", tables=[*_ledgers(document["rounds"])]),
        ],
        end=f"from {document['model']} · simpo pairs score {' '.join(document['scoring'])} · simpo {__version__}",
    )


def _ledgers(rounds: Sequence[Mapping[str, Any]]) -> list[Table]:
    made = [one for one in rounds if one["pairs"] is not None]
    return [ledger_table({**one["pairs"], "file": f"round {one['round']}"}) for one in made]


def _figures(document: Mapping[str, Any]) -> dict[str, list[TitledFigure]]:
    """Curves of the answers and of the pairs."""
    rounds = document["rounds"]
    names, most = names_of(document), len(rounds) - 1
    answers: list[TitledFigure] = []
    pairs: list[TitledFigure] = []
    for key in ("passed", "score", "ended", "repeated"):
        if rounds and all(one["held_out"].get(key) for one in rounds):
            show = three_digits if key == "score" else percent
            line = _line(names[key], [(one["round"], one["held_out"][key]) for one in rounds], HELD_OUT)
            title, from_zero = names[key].capitalize(), show is percent
            answers.append(curve_figure(title, [line], show, most, name=key, unit="round", is_from_zero=from_zero))
    scored = [one for one in rounds if one["on_pairs"] is not None]
    lines = []
    for key, name, colour in (("accuracy", "all", INK), ("balanced", "length-balanced", CHOSEN)):
        points = [(one["round"], one["on_pairs"][key]) for one in scored if one["on_pairs"][key] is not None]
        if points:
            lines.append(_line(name, points, colour))
    if lines:
        pairs.append(curve_figure("Accuracy", lines, percent, most, name="pairs", level=(0.5, "50 %"), unit="round"))
    return {"answers": answers, "pairs": pairs}


def _line(name: str, points: Sequence[tuple[int, Mapping[str, Any]]], colour: str) -> Line:
    rounds = np.array([number for number, _ in points], dtype=np.float64)
    values, low, high = (
        np.array([find(one) for _, one in points], dtype=np.float64)
        for find in (lambda one: one["value"], lambda one: _end(one, 0), lambda one: _end(one, 1))
    )
    return Line(name, Curve(rounds, values), colour, "points", (Curve(rounds, low), Curve(rounds, high)))


def _end(measured: Mapping[str, Any], end: int) -> float:
    bound = measured["ci"][end]
    return float(measured["value"] if bound is None else bound)
