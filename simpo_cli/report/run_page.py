"""`report.html`: what a run did and what it is worth, as one file."""

import shlex
from datetime import UTC, datetime
from pathlib import Path

import simpo_cli
from simpo_cli.formatting import duration
from simpo_cli.model.remote_code import FLAG
from simpo_cli.report.page import render, write_page
from simpo_cli.report.run_figures import change_figure, drift_figure, length_figure, margin_figure, training_figures
from simpo_cli.report.run_files import RunFiles, read_run
from simpo_cli.report.run_tables import (
    accounts,
    answer_panels,
    baseline_rows,
    drift_rows,
    length_cells,
    length_rows,
    outcome_rows,
    pair_samples,
    recipe_rows,
)
from simpo_cli.report.verdict import alerts, tone, verdict
from simpo_cli.stages import stage

REPORT_FILE = "report.html"
SHOWN_NOTES = 100
SHOWN_FILES = 100


@stage("writing the report")
def write_run_report(path: Path, output: Path | None = None) -> Path:
    """Write the page of a run anew from what it has written so far, by default RUN/report.html, and return its path.

    Raises:
        UserError: the folder is not a run or is damaged, or the page cannot be written.
    """
    target = path / REPORT_FILE if output is None else output
    write_page(target, run_page(read_run(path)), named="the report" if output is None else "--output")
    return target


def run_page(run: RunFiles, now: datetime | None = None) -> str:
    """The page.

    Args:
        run: the run as read.
        now: when the page is made; this moment if not given.
    """
    lengths = length_rows(run)
    measured = outcome_rows(run.outcome)
    said = [note for note in run.notes if note["label"] == "note"]
    return render(
        "run.html.jinja",
        run=run,
        receipt=run.receipt,
        outcome=run.outcome,
        name=run.path.resolve().name if run.recipe is None else run.recipe.name,
        version=simpo_cli.__version__,
        made=(now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC"),
        last_written=None if run.last_written is None else run.last_written.strftime("%Y-%m-%d %H:%M UTC"),
        took=duration(run.outcome["seconds"]) if "seconds" in run.outcome else None,
        verdict=unbroken(verdict(run)),
        tone=tone(run),
        alerts=[unbroken(alert) for alert in alerts(run)],
        rows=measured,
        baselines=baseline_rows(run.outcome) if measured else [],
        training=training_figures(run),
        margins=margin_figure(run),
        drift=drift_rows(run),
        drift_figures=[figure for figure in (drift_figure(run), change_figure(run)) if figure is not None],
        samples=pair_samples(run),
        lengths=[length_cells(row) for row in lengths],
        length_figure=length_figure(lengths),
        panels=answer_panels(run),
        accounts=accounts(run),
        settings=recipe_rows(run),
        commands=_commands(run),
        findings=[note for note in run.notes if note["label"] != "note" and note["code"]],
        screen=[note for note in run.notes if note["label"] != "note"],
        notes=said[:SHOWN_NOTES],
        num_notes=len(said),
        shown_files=SHOWN_FILES,
    )


def _commands(run: RunFiles) -> list[str]:
    """What makes the run, its scores and its page again."""
    commands = [str(run.receipt["command"])]
    trusted = [FLAG] if run.receipt.get("model", {}).get("code") else []
    if run.recipe is not None:
        again = f"{run.recipe.name}-again"
        words = ["simpo", "train", str(run.path / "recipe.yaml"), f"name={again}", f"output_dir=runs/{again}"]
        commands.append(shlex.join([*words, *trusted]))
    if run.state == "done":
        commands.append(shlex.join(["simpo", "eval", str(run.path), *trusted]))
    return [*commands, shlex.join(["simpo", "report", str(run.path)])]


def unbroken(text: str) -> str:
    """No line ends between a number and its sign."""
    for sign in (" %", " = ", " < "):
        text = text.replace(sign, sign.replace(" ", "\u00a0"))
    return text
