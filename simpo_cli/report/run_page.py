"""`report.html`: what a run did and what it is worth, as one file."""

import shlex
from datetime import UTC, datetime
from pathlib import Path

from simpo_cli.evaluate.tables import outcome_table, rules_table
from simpo_cli.formatting import duration
from simpo_cli.model.remote_code import FLAG
from simpo_cli.report.page import render, write_page
from simpo_cli.report.run_figures import drift_figures, length_figures, margin_figure, training_figures
from simpo_cli.report.run_files import RunFiles, read_run
from simpo_cli.report.run_tables import (
    accounts,
    answer_panels,
    drift_table,
    length_rows,
    length_table,
    pair_samples,
    recipe_table,
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
    lengths, screen = length_rows(run), [note for note in run.notes if note["label"] != "note"]
    notes = [note for note in run.notes if note["label"] == "note"]
    return render(
        "run.html.jinja",
        run=run,
        receipt=run.receipt,
        outcome=run.outcome,
        made=_moment(now or datetime.now(UTC)),
        last_written=None if run.last_written is None else _moment(run.last_written),
        took=duration(run.outcome["seconds"]) if "seconds" in run.outcome else None,
        verdict=verdict(run),
        tone=tone(run),
        alerts=alerts(run),
        measured=outcome_table(run.outcome),
        rules=rules_table(run.outcome["after"]["baselines"]) if "after" in run.outcome else None,
        training=training_figures(run),
        margins=margin_figure(run),
        drift=drift_table(run),
        drift_figures=drift_figures(run),
        samples=pair_samples(run),
        lengths=length_table(lengths),
        length_figures=length_figures(lengths),
        panels=answer_panels(run),
        accounts=accounts(run),
        settings=recipe_table(run),
        commands=_commands(run),
        findings=[note for note in screen if note["code"]],
        screen=screen,
        notes=notes[:SHOWN_NOTES],
        num_notes=len(notes),
        shown_files=SHOWN_FILES,
    )


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")


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
