"""The end of a run: the saved model scored as others will load it, beside the start model, on the same pairs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from simpo_cli.evaluate.held_out import surface_accuracy
from simpo_cli.evaluate.metrics import compare_scores, summarise
from simpo_cli.evaluate.pair_files import write_pairs, write_samples
from simpo_cli.evaluate.tables import BRIEFLY, outcome_table
from simpo_cli.formatting import Cell, percent
from simpo_cli.model.policy import Policy
from simpo_cli.model.remote_code import FLAG
from simpo_cli.model.rounding import Rounding
from simpo_cli.run.events import RunOutcome
from simpo_cli.run.folder import EVAL_PAIRS, EVAL_SAMPLES
from simpo_cli.stages import stage
from simpo_cli.table import Row
from simpo_cli.train.header import data_names
from simpo_cli.train.health.watch import CHANGE_LOST
from simpo_cli.train.loop import Training, evaluate
from simpo_cli.train.run_plan import QUICK, RunPlan


def conclude(
    training: Training,
    saved: Policy,
    setting: RunPlan,
    *,
    run_dir: Path,
    rounding: Rounding | None,
    answers: tuple[tuple[str, str, str], ...],
    seconds: float,
) -> tuple[RunOutcome, dict[str, Any]]:
    """Score model/ and compare it with the start model.

    Args:
        training: holds the start model's scores.
        saved: model/ loaded again.
        setting: the run.
        run_dir: the run's folder.
        rounding: what the export type did to the change, if it is narrower.
        answers: (question, before, after).
        seconds: wall time of the run so far.

    Returns:
        What a person sees, and the `outcome` of run.json.
    """
    recipe, held_out = setting.recipe, setting.evaluated
    rows: list[Row] = []
    measured: dict[str, Any] = {"steps": setting.plan.num_steps, "seconds": seconds}
    if setting.quick:
        measured["not_measured"] = QUICK
        rows.append(_row("accuracy", "not measured", QUICK))
    if held_out:
        with stage("closing evaluation"):
            evaluate(training, setting.plan.num_steps, saved)
        assert training.start_scores is not None
        assert training.last_scores is not None
        scores = training.last_scores
        surface = surface_accuracy(setting.data.train, held_out, setting.data.tokenizer)
        before, after = (summarise(one, recipe.loss, surface) for one in (training.start_scores, scores))
        comparison = compare_scores(training.start_scores, scores, recipe.loss)
        name = data_names(recipe.data.eval if recipe.data.eval is not None else recipe.data.train)
        measured["before"] = before.as_json(model=recipe.model.path, data=name)
        measured["after"] = after.as_json(model=str(run_dir / "model"), data=name)
        measured["difference"] = comparison.as_json()
        write_pairs(run_dir / EVAL_PAIRS, held_out, training.start_scores, scores)
        write_samples(
            run_dir / EVAL_SAMPLES,
            held_out,
            training.start_scores,
            scores,
            tokenizer=setting.data.tokenizer,
            seed=recipe.seed,
        )
    measured["answers"] = [{"question": q, "before": b, "after": a} for q, b, a in answers]
    if rounding is not None:
        measured["export"] = {
            "kept_share": rounding.kept_share,
            "rounded_back_share": rounding.rounded_back_share,
        }
        training.health.judge_export(setting.plan.num_steps, rounding.kept_share)
        is_lost = CHANGE_LOST.is_beyond(rounding.kept_share, recipe.health)
        remark = "HEA006: export.dtype=fp32 keeps all of it" if is_lost else ""
        rows.append(_row("change kept by the save", percent(rounding.kept_share), remark))
    if alerts := training.health.alerts:
        codes = ", ".join(alert.code for alert in alerts)
        rows.append(_row("health", "1 alert" if len(alerts) == 1 else f"{len(alerts)} alerts", codes))
    table = outcome_table(measured, BRIEFLY)
    outcome = RunOutcome(
        run_dir=str(run_dir),
        model_dir=str(run_dir / "model"),
        steps=setting.plan.num_steps,
        seconds=seconds,
        answers=answers,
        table=replace(table, rows=[*table.rows, *rows]),
        next_commands=(
            (
                f"simpo eval {run_dir}{f' {FLAG}' if setting.source.code else ''}",
                "scores the saved model again, with --json for scripts",
            ),
            _next_step(setting),
        ),
    )
    return outcome, measured


def _row(label: str, after: str, remark: str) -> Row:
    return Row(label, (Cell(""), Cell(after)), remark)


def _next_step(setting: RunPlan) -> tuple[str, str]:
    if setting.recipe.model.path == "builtin:guide":
        return "simpo recipe copy smollm2-135m", "a recipe for your own pairs"
    return f"simpo stats {data_names(setting.recipe.data.train)}", "the audit of the data that this run used"
