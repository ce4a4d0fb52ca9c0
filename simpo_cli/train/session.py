"""`simpo train`: from a composed recipe to a run folder with a model in it that was loaded again and scored."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.answers import Question, answer
from simpo_cli.files import how_to_mend
from simpo_cli.model.load import DTYPE_NAMES, find_model, load_model
from simpo_cli.model.memory import OutOfMemoryError, memory_for
from simpo_cli.model.not_finite import NotFiniteError
from simpo_cli.model.policy import Policy
from simpo_cli.model.rounding import export_dtype
from simpo_cli.publish.card import Trained, model_card, write_card
from simpo_cli.publish.export import save_model
from simpo_cli.recipe import ComposedRecipe
from simpo_cli.run import checkpoint
from simpo_cli.run.events import Observer, RunOutcome
from simpo_cli.run.folder import CHECKPOINTS, LOGS, RECIPE, REJECTED, RunFolder, require_usable
from simpo_cli.run.identity import Change, recipe_values, require_known_keys, require_same_run
from simpo_cli.run.receipt import RunReceipt, command_line, command_to_resume, now, reopen
from simpo_cli.run.stop import Stopped, StopRequest
from simpo_cli.run.verify import written_files
from simpo_cli.stages import stage
from simpo_cli.train.build import build, questions_of
from simpo_cli.train.header import header
from simpo_cli.train.health.watch import UnhealthyError
from simpo_cli.train.loop import Training, run_steps
from simpo_cli.train.observers import Recorder, Trackers
from simpo_cli.train.outcome import conclude
from simpo_cli.train.resume import ResumeState, take_up
from simpo_cli.train.run_plan import RunPlan, prepare
from simpo_cli.train.saving import CheckpointSaver


def finish(
    training: Training,
    setting: RunPlan,
    questions: Sequence[Question],
    folder: RunFolder,
    saver: CheckpointSaver,
) -> tuple[RunOutcome, dict[str, Any]]:
    """Write model/, load it again as others will, and score that.

    The training cannot go on in this process afterwards; its last checkpoint can.

    Args:
        training: at its last step, which is saved.
        setting: the run, with the packing that it uses.
        questions: asked once more.
        folder: the run's folder.
        saver: keeps the run's time.

    Returns:
        What a person sees, and the `outcome` of run.json.

    Raises:
        UserError: the disk did not take the model (exit code 4).
        Stopped: a signal asked for it.
    """
    recipe, model_dir = setting.recipe, folder.path / "model"
    dtype = export_dtype(recipe, setting.source) if recipe.model.lora is None else torch.float32  # as peft keeps them
    trained = Trained(recipe, setting.source, setting.data, setting.plan.num_steps, DTYPE_NAMES[dtype])
    training.stop.check()
    training.optimizer.state.clear()  # the moments are in the checkpoint; the export needs the room
    try:
        with training.policy.untouched():
            rounding = save_model(model_dir, training.policy.model, recipe, setting.source, model_card(trained, {}))
    except OSError as error:
        raise UserError(
            f"the model cannot be written to {model_dir}: {error.strerror or error}; the checkpoint of the last step "
            "is kept.",
            f"{how_to_mend(error)}, and write it with: {command_to_resume()}",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error
    with training.stop.at_once():
        saved = Policy(_read_again(model_dir, setting.weights, training.accelerator.device))
        saved.flex, saved.packing = training.policy.flex, setting.packing
        answers = answer(saved, questions, setting.data.tokenizer, training.accelerator)
    both = zip(questions, training.answers_before, answers, strict=True)
    outcome, measured = conclude(
        training,
        saved,
        setting,
        run_dir=folder.path,
        rounding=rounding,
        answers=tuple((question.text, before, after) for question, before, after in both),
        seconds=saver.seconds,
    )
    write_card(model_dir, model_card(trained, measured))  # the one that was saved could not know how the model did
    return outcome, measured


@stage("reading the saved model again")
def _read_again(folder: Path, weights: torch.dtype, device: torch.device) -> nn.Module:
    """The model as others will load it; where that fails the disk is to blame, which has just taken it."""
    try:
        return load_model(find_model(str(folder)), weights, device)
    except UserError as error:
        raise UserError(
            f"the model was written to {folder} and cannot be read again: {error.problem.rstrip('.')}.",
            f"Mend the disk, and write it with: {command_to_resume()}",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error


_FREE_MEMORY = "Free some memory, or lower train.tokens_per_microbatch or data.max_length; model.lora needs less, too."


def train(
    composed: ComposedRecipe,
    *,
    observer: Observer,
    fresh: bool = False,
    resume: bool = False,
    allow_changed: Sequence[str] = (),
    dry_run: bool = False,
    quick: bool = False,
) -> RunOutcome | None:
    """Run a recipe to its end.

    Args:
        composed: the recipe.
        observer: the terminal.
        fresh: set an existing run of this name aside.
        resume: go on with an existing run of this name.
        allow_changed: what may differ from the run that is gone on with, by the names of `identity.Change`.
        dry_run: check everything that can be checked without the weights, say what would happen, and write nothing.
        quick: skip every evaluation and all probe answers, as a smoke run may; a run that began so stays so.

    Returns:
        What the run left behind; None for a dry run, and for a run that was complete already.

    Raises:
        UserError: anything that the person can mend; see the exit codes in `errors`. A signal that stopped the run is
            one of them (exit code 75).
    """
    run_dir = Path(composed.recipe.output_dir)
    if not dry_run:
        require_usable(run_dir, fresh=fresh, resume=resume)
    folder = trackers = None
    with StopRequest() as stop:
        try:
            if resume and not dry_run:  # locked before anything in it is read
                folder = RunFolder.create(run_dir, resume=True)
                checkpoint.reap(run_dir / CHECKPOINTS)
            past = ResumeState.of(run_dir) if resume else ResumeState.none()
            was = past.latest.identity if past.latest else None
            require_known_keys(allow_changed, recipe_values(composed.recipe), was.recipe if was else {})
            with stop.at_once():
                quick = quick or bool(past.document.get("quick"))
                setting = prepare(composed.recipe, was, quick=quick)
                content = setting.receipt(composed, past.document)
            changes = past.changes(setting.identity(content))
            require_same_run(changes, allow_changed, str(run_dir))
            if past.is_complete(setting.plan.num_steps):
                steps = setting.plan.num_steps
                key = "max_steps" if composed.recipe.train.max_steps == steps else "num_epochs"
                observer.note(f"{run_dir} is complete at step {steps} of {steps}; raise train.{key} to go on")
                return None
            first_step = past.latest.step if past.latest else 0
            if dry_run:
                announce(composed, setting, observer, num_steps=0, first_step=0)
                observer.note("dry run: no run was written, no weight was read")
                return None
            if folder is None:
                folder = RunFolder.create(run_dir, fresh=fresh)
            reopen(folder, past.document, composed)
            folder.write_text(RECIPE, composed.as_yaml())
            recorder = Recorder(folder, composed.recipe.tracking.log_every, observer)
            announce(composed, setting, recorder, num_steps=setting.plan.num_steps, first_step=first_step)
            recorder.trackers = trackers = Trackers(setting.accelerator, composed.recipe, recorder.note)
            receipt = RunReceipt(folder, setting.data, setting.plan, content)
            return _train_in(folder, setting, receipt, past, changes, recorder, stop)
        except Stopped as stopped:
            raise UserError(
                f"Stopped by {stopped.name} before the first step; nothing is lost.",
                f"Go on with: {command_to_resume()}",
                exit_code=ExitCode.SAVED,
            ) from None
        finally:
            if trackers is not None:
                trackers.close()
            if folder is not None:
                folder.close()


def _train_in(
    folder: RunFolder,
    setting: RunPlan,
    receipt: RunReceipt,
    past: ResumeState,
    changes: list[Change],
    observer: Observer,
    stop: StopRequest,
) -> RunOutcome:
    _write_rejected(folder, setting)
    with stop.at_once(), memory_for("loading and checking the model", _FREE_MEMORY):
        training, check, loaded = build(setting, observer, stop, past, changes)
    compiled = training.policy.compiled
    setting = replace(setting, packing=check.packing, compiled=compiled, budget=training.budget)
    receipt.content["self_check"] = check.as_json()
    receipt.content["compiled"] = compiled
    me = setting.identity(receipt.content)
    if loaded is None:
        for name in LOGS:
            folder.cut_back(name, 0)
    else:
        entry = take_up(loaded, past, me.changes_since(loaded.identity), folder, training)
        receipt.content["resumed"].append({"at": now(), "command": command_line(), **entry})
    saver = CheckpointSaver(folder, training, receipt, me, loaded)
    receipt.write("running", training.steps_done, training.health.alerts_as_json())
    questions, num_steps = questions_of(setting), setting.plan.num_steps
    try:
        with memory_for(f"the run, after step {training.steps_done}", _FREE_MEMORY):
            if loaded is None:
                with stop.at_once():
                    training.answers_before = answer(
                        training.policy, questions, setting.data.tokenizer, setting.accelerator
                    )
            run_steps(training, saver.save)
            outcome, measured = finish(training, setting, questions, folder, saver)
    except Stopped as stopped:
        if training.steps_done > 0:
            saver.save()
        receipt.write("stopped", training.steps_done, training.health.alerts_as_json())
        raise UserError(
            f"Stopped by {stopped.name} after step {training.steps_done} of {num_steps}; everything is saved.",
            f"Go on with: {command_to_resume()}",
            exit_code=ExitCode.SAVED,
        ) from None
    except UnhealthyError as error:
        _write_end(receipt, "stopped", training.steps_done, training, error)
        raise
    except OutOfMemoryError as error:
        if training.steps_done > 0:
            saver.save()  # the weights are those of the last whole step
        _write_end(receipt, "failed", saver.saved_at or 0, training, error)
        raise OutOfMemoryError(
            f"{error.problem} The state after step {saver.saved_at or 0} is saved.",
            f"{error.fix} Then go on with: {command_to_resume()}",
            exit_code=error.exit_code,
        ) from error
    except UserError as error:
        _write_end(receipt, "failed", saver.saved_at or 0, training, error)
        raise
    folder.sync_logs()  # before run.json vouches for them
    receipt.write(
        "done", num_steps, training.health.alerts_as_json(), outcome=measured, files=written_files(folder.path)
    )
    observer.finished(outcome)
    training.health.require_well_at_the_end()
    return outcome


def _write_end(receipt: RunReceipt, status: str, step: int, training: Training, error: UserError) -> None:
    """run.json of a run that ends before its last step."""
    records = {"records": error.records} if isinstance(error, NotFiniteError) else {}
    with suppress(UserError):  # a disk that did not take the checkpoint may not take this either
        receipt.write(status, step, training.health.alerts_as_json(), outcome={"error": str(error), **records})


def announce(
    composed: ComposedRecipe, setting: RunPlan, observer: Observer, *, num_steps: int, first_step: int
) -> None:
    """Show what is about to run, then what is unusual about it."""
    observer.started(header(setting), num_steps=num_steps, first_step=first_step)
    for warning in composed.warnings:
        observer.note(f"{warning.where}: {warning.code} {warning.sentence}")
    for note in setting.notes:
        observer.note(note)


def _write_rejected(folder: RunFolder, setting: RunPlan) -> None:
    """rejected.jsonl: the malformed records that were left out, each with the reason."""
    rows = [
        {"where": refused.where, "problem": refused.problem, "record": refused.text}
        for source in setting.data.sources
        for refused in source.account.refused
    ]
    if rows:
        folder.write_lines(REJECTED, rows)
