"""The end of a run: model/ is written, loaded again as others will load it, and scored beside the start model."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from simpo_cli.distributed import ranks
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.answers import Question, answer, check_answers
from simpo_cli.evaluate.checked import compare_checked
from simpo_cli.evaluate.held_out import surface_accuracy
from simpo_cli.evaluate.looks import LOOKS, count_look
from simpo_cli.evaluate.metrics import compare_scores, summarise
from simpo_cli.evaluate.pair_files import write_pairs, write_samples
from simpo_cli.evaluate.tables import BRIEFLY, outcome_table
from simpo_cli.files import how_to_mend
from simpo_cli.formatting import Cell, percent
from simpo_cli.model.load import load_model
from simpo_cli.model.load_sharded import Read, distribute, outline, reader, unread, whole_model
from simpo_cli.model.policy import Policy
from simpo_cli.model.remote_code import FLAG
from simpo_cli.model.rounding import Rounding, export_dtype
from simpo_cli.model.source import DTYPE_NAMES, find_model
from simpo_cli.publish.card import Trained, model_card, write_card
from simpo_cli.publish.export import keeps_merged, save_model
from simpo_cli.publish.serve import can_be_gguf, serve_commands, served_name
from simpo_cli.recipe.schema import ModelRecipe
from simpo_cli.run.events import RunOutcome
from simpo_cli.run.folder import BASE, EVAL_PAIRS, EVAL_SAMPLES, MODEL, RunFolder
from simpo_cli.run.receipt import command_to_resume, command_with
from simpo_cli.stages import stage
from simpo_cli.statistics import as_json
from simpo_cli.table import Row, Table
from simpo_cli.train.advice import suggestions
from simpo_cli.train.header import data_names
from simpo_cli.train.health import CHANGE_LOST
from simpo_cli.train.loop import Training, evaluate
from simpo_cli.train.run_plan import QUICK, RunPlan
from simpo_cli.train.saving import CheckpointSaver


def finish(
    training: Training, questions: Sequence[Question], folder: RunFolder, saver: CheckpointSaver
) -> tuple[RunOutcome, dict[str, Any]]:
    """Write model/ after the last step, which is saved, load it again as others will, and score that.

    The training cannot continue in this process afterwards; its last checkpoint can. What comes back is what a person
    sees, and the `outcome` of run.json.

    Raises:
        UserError: the disk did not take the model (exit code 4).
        Stopped: a signal stopped it.
    """
    run, model_dir = training.run, folder.path / MODEL
    recipe, source = run.recipe, run.source
    dtype = export_dtype(recipe, source) if recipe.model.lora is None else torch.float32  # as peft keeps adapters
    trained = Trained(recipe, source, run.data, run.plan.num_steps, DTYPE_NAMES[dtype])
    ranks.require_not_stopped(training.stop)
    training.optimizer.state.clear()  # the moments are in the checkpoint; the export needs the room
    try:
        rounding = _save(model_dir, training, model_card(trained, {}))
    except OSError as error:
        raise UserError(
            f"the model cannot be written to {model_dir}: {error.strerror or error}; the checkpoint of the last step "
            "is kept.",
            f"{how_to_mend(error)}, and write it with: {command_to_resume()}",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error
    with training.stop.at_once():
        saved = _read_again(model_dir, run)
        saved.flex, saved.packing = training.policy.flex, run.packing
        answers = answer(saved, questions, run.data.tokenizer, run.accelerator)
    asked = zip(questions, training.answers_before, answers, strict=True)
    before_and_after = [(question.text, before, after) for question, before, after in asked]
    seconds = saver.seconds
    table, measured = conclude(training, saved, folder.path, rounding)
    measured |= {"answers": [dict(zip(("question", "before", "after"), row, strict=True)) for row in before_and_after]}
    if ranks.is_first():
        write_card(model_dir, model_card(trained, measured))  # the one that was saved could not know how the model did
    suggested = suggestions(recipe, [alert.code for alert in training.health.alerts])
    measured["suggestions"] = [one.as_json() for one in suggested]
    flag = f" {FLAG}" if source.code else ""
    outcome = RunOutcome(
        run_dir=str(folder.path),
        model_dir=str(model_dir),
        steps=run.plan.num_steps,
        seconds=seconds,
        answers=tuple(before_and_after),
        table=table,
        next_commands=(
            *((command_with(*one.overrides, f"output_dir={folder.path}-2"), one.why) for one in suggested),
            (f"simpo eval {folder.path}{flag}", "scores the saved model again"),
            (f"simpo chat {folder.path} --beside base{flag}", "talk to it and its start"),
            *_serving(run, folder.path),
            ("simpo init my-run.yaml", "a recipe for your own pairs")
            if data_names(recipe.data.train) == "builtin:guide"
            else (f"simpo stats {data_names(recipe.data.train)}", "the audit of the data that this run used"),
        ),
    )
    return outcome, {"steps": run.plan.num_steps, "seconds": seconds, **measured}


def _serving(run: RunPlan, folder: Path) -> list[tuple[str, str]]:
    """The commands that serve model/, or make one file of it."""
    recipe, source = run.recipe, run.source
    under = source.adapter_base or source
    base = under.name if under.revision is not None else str(under.folder)
    base = str(folder / BASE) if keeps_merged(recipe.model) else base
    name, has_code = served_name(recipe.name), bool(source.code)
    commands = serve_commands(name, str(folder / MODEL), base, recipe.model, has_code=has_code)
    if can_be_gguf(source):
        commands.append((f"simpo export {folder} --gguf q8_0", "one file for Ollama, llama.cpp"))
    return commands


def _save(model_dir: Path, training: Training, card: str) -> Rounding | None:
    """Have the first rank write model/; what rounding did to it."""
    run, policy = training.run, training.policy
    is_in_parts = run.strategy == "fsdp2" and run.recipe.model.lora is None
    model = whole_model(policy, run.source, run.weights) if is_in_parts else policy.model

    def write() -> dict[str, Any] | None:
        with policy.untouched():
            rounding = save_model(model_dir, model, run.recipe, run.source, card)
        return None if rounding is None else asdict(rounding)

    said = ranks.from_first(write, "saving the model")
    return None if said is None else Rounding(**said)


@stage("reading the saved model again")
def _read_again(folder: Path, run: RunPlan) -> Policy:
    """The model as others will load it; where that fails the disk is to blame, which has just taken it."""
    device, offload = run.accelerator.device, run.recipe.distributed.cpu_offload

    def read() -> tuple[Policy, Read]:
        source = find_model(str(folder), quantization=run.source.quantization)
        if run.strategy != "fsdp2":
            return Policy(load_model(source, run.weights, device)), unread
        policy = Policy(outline(ModelRecipe(path=str(folder), lora=run.recipe.model.lora), source, run.weights, 0))
        return policy, reader(run.recipe.model, source, run.weights, policy)[0] if ranks.is_first() else unread

    try:
        policy, read_tensor = ranks.together(read, "reading the saved model again")
    except UserError as error:
        raise UserError(
            f"the model was written to {folder} and cannot be read again: {error.problem.rstrip('.')}.",
            f"Mend the disk, and write it with: {command_to_resume()}",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error
    if run.strategy == "fsdp2":
        distribute(policy, read_tensor, device, run.data.train[0], offload=offload)
    return policy


def conclude(
    training: Training, saved: Policy, run_dir: Path, rounding: Rounding | None
) -> tuple[Table, dict[str, Any]]:
    """Score model/, loaded again, beside the start model: the table that a person sees, and what run.json says."""
    run, recipe, held_out = training.run, training.run.recipe, training.run.evaluated
    rows: list[Row] = []
    measured: dict[str, Any] = {}
    if run.quick:
        measured["not_measured"] = QUICK
        rows.append(_row("accuracy", "not measured", QUICK))
    if held_out:
        with stage("closing evaluation"):
            evaluate(training, run.plan.num_steps, saved)
        start, end = training.start_scores, training.last_scores
        assert start is not None
        assert end is not None
        surface = surface_accuracy(run.data.train, held_out, run.data.tokenizer)
        before, after = (summarise(scores, recipe.loss, surface) for scores in (start, end))
        comparison = compare_scores(start, end, recipe.loss)
        name = data_names(recipe.data.eval if recipe.data.eval is not None else recipe.data.train)
        measured["before"] = before.as_json(model=recipe.model.path, data=name)
        measured["after"] = after.as_json(model=str(run_dir / MODEL), data=name)
        measured["difference"] = as_json(comparison)
        if ranks.is_first():
            write_pairs(run_dir / EVAL_PAIRS, held_out, start, end)
            write_samples(run_dir / EVAL_SAMPLES, held_out, start, end, tokenizer=run.data.tokenizer, seed=recipe.seed)
            if recipe.eval.part == "confirming":
                with suppress(UserError, OSError):  # a damaged count of looks is no reason to lose a run at its end
                    keys = [f"{key:016x}" for key in end.groups.tolist()]
                    looks = count_look(run_dir, keys, end.chosen.tobytes() + end.rejected.tobytes())
                    measured["looks"] = looks
                    rows.append(_row("looks at these pairs", f"{looks:,}", f"of runs and studies; {LOOKS} counts them"))
    if training.checkable:
        with training.stop.at_once():
            checked = check_answers(saved, training.checkable, run.data.tokenizer, run.accelerator)
        measured["checked"] = compare_checked({"before": training.checked_before, "after": checked})
    if rounding is not None:
        measured["export"] = asdict(rounding)
        training.health.judge_export(run.plan.num_steps, rounding.kept_share)
        is_lost = CHANGE_LOST.is_beyond(rounding.kept_share, recipe.health)
        remark = f"{CHANGE_LOST.code}: export.dtype=fp32 keeps all of it" if is_lost else ""
        rows.append(_row("change kept by the save", percent(rounding.kept_share), remark))
    if alerts := training.health.alerts:
        codes = ", ".join(alert.code for alert in alerts)
        rows.append(_row("health", "1 alert" if len(alerts) == 1 else f"{len(alerts)} alerts", codes))
    table = outcome_table(measured, BRIEFLY)
    return replace(table, rows=[*table.rows, *rows]), measured


def _row(label: str, after: str, remark: str) -> Row:
    return Row(label, (Cell(""), Cell(after)), remark)
