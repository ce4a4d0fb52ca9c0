"""`report.html`: what a run did and what it is worth, as one file.

It draws the curves of training and what became of each held-out pair, and tabulates accuracy by length, drift, where
every record went, pairs to read, and what `simpo eval --generate` has put into the run's folder.
"""

import hashlib
import json
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from simpo_cli.errors import UserError
from simpo_cli.evaluate.generate.folder import MANIFEST, AnswerFolder, is_answers
from simpo_cli.evaluate.generate.measures import answers_document
from simpo_cli.evaluate.tables import outcome_table, rules_table
from simpo_cli.formatting import (
    LOG_PROB_DIGITS,
    Cell,
    change_cell,
    duration,
    fixed,
    percent,
    share_cell,
    thousands,
)
from simpo_cli.model.remote_code import FLAG
from simpo_cli.objective import Objective
from simpo_cli.report import figures as drawn
from simpo_cli.report.eval_view import answer_remarks, how_answered, measure_tables, preference_tables
from simpo_cli.report.figures import (
    CHOSEN,
    HELD_OUT,
    INK,
    REJECTED,
    Curve,
    Floats,
    LengthRow,
    Line,
    Show,
    TitledFigure,
    length_figures,
)
from simpo_cli.report.page import render, write_page
from simpo_cli.report.run_files import Row as PairRow
from simpo_cli.report.run_files import RunFiles, read_run
from simpo_cli.report.verdict import alerts, tone, verdict
from simpo_cli.stages import stage
from simpo_cli.statistics import MIN_STRATUM_PAIRS, mean, proportion
from simpo_cli.table import Row, Table

REPORT_FILE = "report.html"
SHOWN_NOTES = 100
SHOWN_FILES = 100
SHOWN_PROMPTS = 4
_SIDES = (("chosen", CHOSEN), ("rejected", REJECTED))


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
    """The page; `now` is when it is made, this moment if not given."""
    lengths, screen = length_rows(run), [note for note in run.notes if note["label"] != "note"]
    notes = [note for note in run.notes if note["label"] == "note"]
    return render(
        "run.html.jinja",
        run=run,
        receipt=run.receipt,
        outcome=run.outcome,
        made=moment(now or datetime.now(UTC)),
        last_written=None if run.last_written is None else moment(run.last_written),
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
        panels=[_panel(folder, run) for folder in sorted(run.path.iterdir()) if is_answers(folder)],
        accounts=accounts(run),
        settings=recipe_table(run),
        commands=_commands(run),
        findings=[note for note in screen if note["code"]],
        screen=screen,
        notes=notes[:SHOWN_NOTES],
        num_notes=len(notes),
        shown_files=SHOWN_FILES,
    )


def moment(at: datetime) -> str:
    """2026-03-01 14:26 UTC"""
    return at.strftime("%Y-%m-%d %H:%M UTC")


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


def training_figures(run: RunFiles) -> list[TitledFigure]:
    """Curves of metrics.jsonl and evals.jsonl; empty where no step was taken."""
    if not run.metrics:
        return []

    def curves(title: str, key: str, show: Show, held_out: str = "", **settings: Any) -> TitledFigure:
        lines = [Line("training", Curve.of(run.metrics, key), kind="exact" if key == "learning_rate" else "steps")]
        if held_out:
            low, high = (Curve.of(run.evals, f"{held_out}_{end}") for end in ("low", "high"))
            band = (low, high) if show is percent else None
            lines.append(Line("held out", Curve.of(run.evals, held_out), HELD_OUT, "points", band))
        caption = "Band: 95 % interval of the held-out pairs." if run.evals and show is percent else ""
        return drawn.curve_figure(title, lines, show, run.steps_done, name=key, caption=caption, **settings)

    recipe = run.recipe
    gamma = None if recipe is None else (recipe.loss.margin, "gamma")
    limit = None if recipe is None else (recipe.train.max_grad_norm, "max_grad_norm")
    return [
        curves("Loss", "loss", drawn.three_digits, "loss"),
        curves("Accuracy", "rewards/accuracies", percent, "accuracy", level=(0.5, "random baseline")),
        curves("Reward margin", "rewards/margins", drawn.two_digits, "margin", level=gamma),
        drawn.curve_figure(
            "Log-probs of training batches",
            [Line(side, Curve.of(run.metrics, f"logps/{side}"), colour, "mean") for side, colour in _SIDES],
            drawn.three_digits,
            run.steps_done,
            caption="Nats a token; batches hold different pairs.",
        ),
        curves("Gradient norm", "grad_norm", drawn.two_digits, level=limit),
        curves("Learning rate", "learning_rate", "{:.2g}".format),
        curves("Tokens a second", "tokens_per_second", "{:,.0f}".format, is_from_zero=True),
    ]


def drift_figures(run: RunFiles) -> list[TitledFigure]:
    """How log-probs moved on the fixed probe, from the second evaluation on, and on each held-out pair."""
    figures = []
    if len(run.evals) > 1:
        lines = [Line(side, Curve.of(run.evals, f"logps/{side}_delta"), colour, "points") for side, colour in _SIDES]
        caption = f"Change since step 0 on the same {run.evals[-1]['probe_pairs']} held-out pairs, nats a token."
        title = "Drift during the run"
        figures.append(drawn.curve_figure(title, lines, drawn.signed, run.steps_done, caption=caption, has_zero=True))
    if run.pairs:
        changes = [_change(run, side) for side, _ in _SIDES]
        chosen, rejected = (drawn.signed(float(change.mean())) for change in changes)
        fell = f"{percent(float((changes[0] < 0).mean()))} of the pairs (n = {len(run.pairs):,})"
        figure = drawn.histogram_figure(
            "What training did to each response",
            "changes",
            [(side, change, colour) for (side, colour), change in zip(_SIDES, changes, strict=True)],
            "change of the log-prob, nats a token",
            f"Change of the log-probs of the held-out pairs: chosen {chosen} and rejected {rejected} nats a token on "
            "average.",
            f"Mean {chosen} for chosen, {rejected} for rejected; chosen fell in {fell}.",
        )
        figures.append(figure)
    return figures


def margin_figure(run: RunFiles) -> TitledFigure | None:
    """Reward margins of the held-out pairs before and after; None where they, or the objective, are not known."""
    if not run.pairs or run.recipe is None:
        return None
    objective = Objective(run.recipe.loss)
    before, after = (
        objective.margin(pair_column(run.pairs, f"chosen_{when}"), pair_column(run.pairs, f"rejected_{when}"))
        for when in ("before", "after")
    )
    means = [fixed(float(margins.mean()), 2) for margins in (before, after)]
    past = [percent(float((margins > objective.gamma).mean())) for margins in (before, after)]
    return drawn.histogram_figure(
        "Margins of held-out pairs",
        "margins",
        (("before", before, INK), ("after", after, HELD_OUT)),
        "reward of chosen - reward of rejected",
        f"Margins of the held-out pairs: mean {means[0]} before and {means[1]} after; past gamma {past[0]} before and "
        f"{past[1]} after.",
        f"Right of 0 the pair is right; past gamma: {past[0]} before, {past[1]} after (n = {len(before):,}).",
        level=(objective.gamma, "gamma"),
    )


def pair_samples(run: RunFiles) -> dict[str, list[dict[str, Any]]]:
    """The run's samples by why they were taken: `drawn` by the seed, `worst` for the margins that fell most."""
    samples: dict[str, list[dict[str, Any]]] = {"drawn": [], "worst": []}
    for row in run.samples:
        if row["why"] in samples and row["line"] <= len(run.pairs):
            pair = run.pairs[row["line"] - 1]
            before, after = (pair[f"chosen_{when}"] - pair[f"rejected_{when}"] for when in ("before", "after"))
            margin = f"{fixed(before, 3)} before, {fixed(after, 3)} after"
            texts = [(name, row[name]) for name in ("prompt", "chosen", "rejected")]
            samples[row["why"]].append({"where": pair["where"], "margin": margin, "texts": texts})
    return samples


def length_rows(run: RunFiles) -> list[LengthRow]:
    """Accuracy where chosen is longer, shorter, as long, and the mean of the first two."""
    if "before" not in run.outcome:
        return []
    labels = {"chosen_longer": "chosen longer", "chosen_shorter": "chosen shorter", "balanced": "balanced"}
    both = [run.outcome[when]["length"] for when in ("before", "after")]
    rows: list[LengthRow] = [(label, both[0][key], both[1][key]) for key, label in labels.items()]
    equal = [row for row in run.pairs if row["chosen_tokens"] == row["rejected_tokens"]]
    if len(equal) >= MIN_STRATUM_PAIRS:
        gaps = [
            pair_column(equal, f"chosen_{when}") - pair_column(equal, f"rejected_{when}")
            for when in ("before", "after")
        ]
        prompts = [row["prompt"] for row in equal]
        before, after = (proportion((np.sign(gap) + 1) / 2, prompts).as_json() for gap in gaps)
        rows.insert(2, ("equal length", before, after))
    return rows


def length_table(lengths: Sequence[LengthRow]) -> Table:
    """The same as a table."""
    rows = []
    for label, before, after in lengths:
        if before is None or after is None:
            cells = (Cell(f"under {MIN_STRATUM_PAIRS}"), Cell("too few"), Cell("too few"))
        else:
            cells = (Cell(thousands(after["n"])), share_cell(before), share_cell(after))
        rows.append(Row(label, cells))
    return Table(("pairs", "before", "after"), rows, title="accuracy where")


def drift_table(run: RunFiles) -> Table:
    """How the log-probs of the held-out pairs changed, with intervals by prompt; no rows where that is not known."""
    prompts = [row["prompt"] for row in run.pairs]
    rows = []
    for side in ("chosen", "rejected") if run.pairs else ():
        change = _change(run, side)
        fell = share_cell(proportion((change < 0).astype(float), prompts).as_json())
        rows.append(Row(f"{side}, nats/token", (change_cell(mean(change, prompts).as_json(), LOG_PROB_DIGITS),)))
        rows.append(Row(f"pairs whose {side} fell", (fell,)))
    return Table((f"{thousands(len(prompts))} held-out pairs",), rows, title="change since the start model")


def recipe_table(run: RunFiles) -> Table:
    """Key, value and origin of what somebody set, in the order of the recipe; no rows for runs that kept no origins."""
    origins = run.receipt.get("recipe_origins", {})
    rows = [
        Row(key, (Cell(shown_value(value)), Cell(origins[key]))) for key, value in run.values.items() if key in origins
    ]
    return Table(("value", "set in"), rows, title="key")


def shown_value(value: Any) -> str:
    """A value as a recipe would hold it."""
    return value if isinstance(value, str) else json.dumps(value)


def pair_column(pairs: Sequence[PairRow], name: str) -> Floats:
    """(P,) one number of every pair."""
    return np.array([row[name] for row in pairs], dtype=np.float64)


def _change(run: RunFiles, side: str) -> Floats:
    """(P,) what training did to the log-prob of a side of each held-out pair, nats a token."""
    return pair_column(run.pairs, f"{side}_after") - pair_column(run.pairs, f"{side}_before")


def accounts(run: RunFiles) -> list[dict[str, Any]]:
    """Where the records went that were for training, and those for evaluation where they are files of their own.

    What was read, and repeated, is the sum of the parts.
    """
    labels = {"trained": "trained", "held_out": "held out", "not_reached": "not reached", "refused": "malformed"}
    found = []
    for side in ("train", "eval"):
        if (source := run.receipt["data"][side]) is None:
            continue
        records = source["records"]
        parts = [(label, records[key]) for key, label in labels.items() if records.get(key)]
        parts += [(f"dropped: {reason}", count) for reason, count in records["dropped"].items()]
        left = [(key, records[key]) for key in ("read", "repeated") if key == "read" or records[key]]
        kept = {key: source[key] for key in ("decision", "files", "counts")}
        found.append({"side": side, "left": left, "parts": parts, **kept})
    return found


def _panel(path: Path, run: RunFiles) -> dict[str, Any]:
    """A folder of answers in the folder of the run; of one that is not whole only why it cannot be shown."""
    try:
        document = answers_document(path)
        answers = _drawn_answers(AnswerFolder.open(path))
    except UserError as error:
        return {"folder": path.name, "how": "", "problem": " ".join(str(error).split())}
    manifest, remarks = document["manifest"], answer_remarks(document)
    resumed = run.receipt.get("resumed")
    made = datetime.fromtimestamp((path / MANIFEST).stat().st_mtime, UTC)
    if resumed and datetime.fromisoformat(resumed[-1]["at"]) > made:
        again = f"move {path} away and have them made anew."
        remarks.insert(0, f"The run was resumed after these answers were made: {again}")
    return {
        "folder": path.name,
        "problem": "",
        "how": how_answered(manifest),
        "models": {side: model["path"] for side, model in manifest["models"].items()},
        "tables": [*measure_tables(document), *preference_tables(document)],
        "answers": answers,
        "remarks": remarks,
    }


def _drawn_answers(folder: AnswerFolder) -> list[tuple[str, str, str]]:
    """A few prompts with their greedy answers of base and trained model, the same ones for the same seed."""
    both = zip(folder.questions, folder.in_order("base", "greedy"), folder.in_order("trained", "greedy"), strict=True)
    seed = folder.manifest["decoding"]["seed"]
    shuffled = sorted(both, key=lambda one: hashlib.sha256(f"shown {seed} {one[0].key}".encode()).digest())
    return [(question.text, base.text, trained.text) for question, base, trained in shuffled[:SHOWN_PROMPTS]]
