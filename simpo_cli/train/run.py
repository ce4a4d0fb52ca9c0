"""`simpo train`: from a composed recipe to a run folder with a model in it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.answers import answer
from simpo_cli.recipe import ComposedRecipe
from simpo_cli.train import checkpoint
from simpo_cli.train.build import build, questions_of
from simpo_cli.train.events import Observer, RunOutcome
from simpo_cli.train.finish import finish
from simpo_cli.train.header import header
from simpo_cli.train.identity import Change, require_same_run
from simpo_cli.train.loop import run_steps
from simpo_cli.train.receipt import RunReceipt, command_line, command_to_resume, identity, now, receipt
from simpo_cli.train.recorder import Recorder
from simpo_cli.train.resume import CHECKPOINTS, Past, take_up
from simpo_cli.train.run_folder import EVALS, METRICS, RunFolder, require_usable
from simpo_cli.train.saving import CheckpointSaver
from simpo_cli.train.setting import Setting, settle
from simpo_cli.train.stop import Stopped, StopRequest
from simpo_cli.train.trackers import open_trackers


def train(
    composed: ComposedRecipe,
    *,
    observer: Observer,
    fresh: bool = False,
    resume: bool = False,
    allow_changed: Sequence[str] = (),
    dry_run: bool = False,
) -> RunOutcome | None:
    """Run a recipe to its end.

    Args:
        composed: the recipe.
        observer: the terminal.
        fresh: set an existing run of this name aside.
        resume: go on with an existing run of this name.
        allow_changed: what may differ from the run that is gone on with, by the names of `identity.Change`.
        dry_run: check everything that can be checked without the weights, say what would happen, and write nothing.

    Returns:
        What the run left behind; None for a dry run, and for a run that was complete already.

    Raises:
        UserError: anything that the person can mend; see the exit codes in `errors`. A signal that stopped the run is
            one of them (exit code 75).
    """
    run_dir = Path(composed.recipe.output_dir)
    if not dry_run:
        require_usable(run_dir, fresh=fresh, resume=resume)
    folder = None
    with StopRequest() as stop:
        try:
            if resume and not dry_run:  # locked before anything in it is read
                folder = RunFolder.create(run_dir, resume=True)
                checkpoint.reap(run_dir / CHECKPOINTS)
            past = Past.of(run_dir) if resume else Past.none()
            with stop.at_once():
                setting = settle(composed.recipe, past.latest.identity.machine if past.latest else None)
                content = receipt(setting, composed, past.document)
            changes = past.changes(identity(setting, content))
            require_same_run(changes, allow_changed, str(run_dir))
            if past.is_complete(setting.plan.num_steps):
                steps = setting.plan.num_steps
                observer.note(f"{run_dir} is complete at step {steps} of {steps}; raise train.num_epochs to go on")
                return None
            first_step = past.latest.step if past.latest else 0
            if dry_run:
                announce(composed, setting, observer, first_step)
                observer.note("dry run: no run was written, no weight was read")
                return None
            if folder is None:
                folder = RunFolder.create(run_dir, fresh=fresh)
            folder.write_text("recipe.yaml", composed.as_yaml())
            recorder = Recorder(folder, setting.accelerator, composed.recipe.tracking.log_every, observer)
            open_trackers(setting.accelerator, composed.recipe)
            announce(composed, setting, recorder, first_step)
            return _train_in(folder, RunReceipt(folder, setting, content), past, changes, recorder, stop)
        except Stopped as stopped:
            raise UserError(
                f"Stopped by {stopped.name} before the first step; nothing is lost.",
                f"Go on with: {command_to_resume()}",
                exit_code=ExitCode.SAVED,
            ) from None
        finally:
            if folder is not None:
                folder.close()


def _train_in(
    folder: RunFolder, receipt: RunReceipt, past: Past, changes: list[Change], observer: Observer, stop: StopRequest
) -> RunOutcome:
    _write_rejected(folder, receipt.setting)
    with stop.at_once():
        training, check, loaded = build(receipt.setting, observer, stop, past, changes)
    setting = replace(receipt.setting, packing=check.packing, budget=training.budget)
    receipt.content["self_check"] = check.as_json()
    me = identity(setting, receipt.content)
    if loaded is None:
        for name in (METRICS, EVALS):
            folder.cut_back(name, 0)
    else:
        entry = take_up(loaded, past, me.changes_since(loaded.identity), folder, training)
        receipt.content["resumed"].append({"at": now(), "command": command_line(), **entry})
    saver = CheckpointSaver(folder, training, receipt, me, loaded)
    receipt.write("running", training.steps_done)
    questions, num_steps = questions_of(setting), setting.plan.num_steps
    try:
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
        receipt.write("stopped", training.steps_done)
        raise UserError(
            f"Stopped by {stopped.name} after step {training.steps_done} of {num_steps}; everything is saved.",
            f"Go on with: {command_to_resume()}",
            exit_code=ExitCode.SAVED,
        ) from None
    except UserError as error:
        receipt.write("failed", saver.saved_at or 0, outcome={"error": str(error)})
        raise
    receipt.write("done", num_steps, outcome=measured)
    setting.accelerator.end_training()
    observer.finished(outcome)
    return outcome


def announce(composed: ComposedRecipe, setting: Setting, observer: Observer, first_step: int) -> None:
    """Show what is about to run, then what is unusual about it."""
    observer.started(header(setting), num_steps=setting.plan.num_steps, first_step=first_step)
    for warning in composed.warnings:
        observer.note(f"{warning.where}: {warning.code} {warning.sentence}")
    for note in setting.notes:
        observer.note(note)


def _write_rejected(folder: RunFolder, setting: Setting) -> None:
    """rejected.jsonl: the malformed records that were left out, each with the reason."""
    rows = [
        {"where": refused.where, "problem": refused.problem, "record": refused.text}
        for source in setting.data.sources
        for refused in source.account.refused
    ]
    if rows:
        folder.write_lines("rejected.jsonl", rows)
