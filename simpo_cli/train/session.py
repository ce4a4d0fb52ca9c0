"""`simpo train`: from a composed recipe to a run folder with a model in it that was loaded again and scored."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.answers import answer
from simpo_cli.model.memory import OutOfMemoryError, memory_for
from simpo_cli.model.not_finite import NotFiniteError
from simpo_cli.recipe.composition import ComposedRecipe
from simpo_cli.recipe.tree import recipe_values
from simpo_cli.run import checkpoint
from simpo_cli.run.events import Observer, RunOutcome
from simpo_cli.run.folder import CHECKPOINTS, LOGS, RECIPE, REJECTED, RunFolder, require_usable
from simpo_cli.run.receipt import (
    Change,
    RunReceipt,
    command_line,
    command_to_resume,
    now,
    reopen,
    require_known_keys,
    require_same_run,
)
from simpo_cli.run.stop import Stopped, StopRequest
from simpo_cli.run.verify import written_files
from simpo_cli.train.build import build, questions_of
from simpo_cli.train.header import header
from simpo_cli.train.health import UnhealthyError
from simpo_cli.train.loop import run_steps
from simpo_cli.train.observers import Recorder, Trackers
from simpo_cli.train.outcome import finish
from simpo_cli.train.run_plan import RunPlan, prepare
from simpo_cli.train.saving import CheckpointSaver, ResumeState, restore_logs

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
        fresh: set an existing run of this name aside.
        resume: resume an existing run of this name.
        allow_changed: what may differ from the run that is resumed, by the names of `receipt.Change`.
        dry_run: check everything that can be checked without the weights, say what would happen, and write nothing.
        quick: skip every evaluation and all probe answers, as a smoke run may; a run that began so stays so.

    Returns:
        What the run left behind; None for a dry run, and for a run that was complete already.

    Raises:
        UserError: anything that the user can fix; see the exit codes in `errors`. A signal that stopped the run is one
            of them (exit code 75).
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
            state = ResumeState.of(run_dir) if resume else ResumeState()
            before = state.latest.identity if state.latest else None
            require_known_keys(allow_changed, recipe_values(composed.recipe), before.recipe if before else {})
            with stop.at_once():
                run = prepare(composed.recipe, before, quick=quick or bool(state.document.get("quick")))
                content = run.receipt(composed, state.document)
            changes = run.identity(content).changes_since(before) if before else []
            require_same_run(changes, allow_changed, str(run_dir))
            num_steps = run.plan.num_steps
            if state.is_complete(num_steps):
                key = "max_steps" if composed.recipe.train.max_steps == num_steps else "num_epochs"
                observer.note(
                    f"{run_dir} is complete at step {num_steps} of {num_steps}; raise train.{key} to train longer"
                )
                return None
            if dry_run:
                _announce(composed, run, observer, num_steps=0, first_step=0)
                observer.note("dry run: no run was written, no weight was read")
                return None
            if folder is None:
                folder = RunFolder.create(run_dir, fresh=fresh)
            reopen(folder, state.document, composed)
            folder.write_text(RECIPE, composed.as_yaml())
            recorder = Recorder(folder, composed.recipe.tracking.log_every, observer)
            first_step = state.latest.step if state.latest else 0
            _announce(composed, run, recorder, num_steps=num_steps, first_step=first_step)
            recorder.trackers = trackers = Trackers(run.accelerator, composed.recipe, recorder.note)
            receipt = RunReceipt(folder, run.data, run.plan, content)
            return _train_in(folder, run, receipt, state, changes, recorder, stop)
        except Stopped as stopped:
            raise _stopped(stopped, "before the first step; nothing is lost") from None
        finally:
            if trackers is not None:
                trackers.close()
            if folder is not None:
                folder.close()


def _train_in(
    folder: RunFolder,
    run: RunPlan,
    receipt: RunReceipt,
    state: ResumeState,
    changes: Sequence[Change],
    observer: Observer,
    stop: StopRequest,
) -> RunOutcome:
    """Build the training, take its steps and finish; run.json is right on every way out."""
    _write_rejected(folder, run)
    with stop.at_once(), memory_for("loading and checking the model", _FREE_MEMORY):
        training, check, loaded = build(run, observer, stop, state, changes)
    run = training.run = replace(
        run, packing=check.packing, compiled=training.policy.compiled, budget=training.budget
    )  # as it really is
    receipt.content |= {"self_check": check.as_json(), "compiled": run.compiled}
    identity = run.identity(receipt.content)
    if loaded is None:
        for name in LOGS:
            folder.cut_back(name, 0)
    else:
        entry = restore_logs(loaded, state, identity.changes_since(loaded.identity), folder, training)
        receipt.content["resumed"].append({"at": now(), "command": command_line(), **entry})
    saver = CheckpointSaver(folder, training, receipt, identity, loaded)

    def write_receipt(status: str, step: int, **more: Any) -> None:
        receipt.write(status, step, training.health.alerts_as_json(), **more)

    def write_error(status: str, step: int, error: UserError) -> None:
        records = {"records": error.records} if isinstance(error, NotFiniteError) else {}
        with suppress(UserError):  # a disk that did not take the checkpoint may not take this either
            write_receipt(status, step, outcome={"error": str(error), **records})

    write_receipt("running", training.steps_done)
    questions, num_steps = questions_of(run), run.plan.num_steps
    try:
        with memory_for(f"the run, after step {training.steps_done}", _FREE_MEMORY):
            if loaded is None:
                with stop.at_once():
                    training.answers_before = answer(training.policy, questions, run.data.tokenizer, run.accelerator)
            run_steps(training, saver.save)
            outcome, measured = finish(training, questions, folder, saver)
    except Stopped as stopped:
        if training.steps_done > 0:
            saver.save()
        write_receipt("stopped", training.steps_done)
        raise _stopped(stopped, f"after step {training.steps_done} of {num_steps}; everything is saved") from None
    except UnhealthyError as error:
        write_error("stopped", training.steps_done, error)
        raise
    except OutOfMemoryError as error:
        if training.steps_done > 0:
            saver.save()  # the weights are those of the last whole step
        write_error("failed", saver.saved_at or 0, error)
        raise OutOfMemoryError(
            f"{error.problem} The state after step {saver.saved_at or 0} is saved.",
            f"{error.fix} Then resume with: {command_to_resume()}",
            exit_code=error.exit_code,
        ) from error
    except UserError as error:
        write_error("failed", saver.saved_at or 0, error)
        raise
    folder.sync_logs()  # before run.json vouches for them
    write_receipt("done", num_steps, outcome=measured, files=written_files(folder.path))
    observer.finished(outcome)
    training.health.require_well_at_the_end()
    return outcome


def _stopped(stopped: Stopped, when: str) -> UserError:
    return UserError(
        f"Stopped by {stopped.name} {when}.", f"Resume with: {command_to_resume()}", exit_code=ExitCode.SAVED
    )


def _announce(composed: ComposedRecipe, run: RunPlan, observer: Observer, *, num_steps: int, first_step: int) -> None:
    """Show what is about to run, then what is unusual about it."""
    observer.started(header(run), num_steps=num_steps, first_step=first_step)
    for warning in composed.warnings:
        observer.note(f"{warning.where}: {warning.code} {warning.sentence}")
    for note in run.notes:
        observer.note(note)


def _write_rejected(folder: RunFolder, run: RunPlan) -> None:
    """rejected.jsonl: the malformed records that were left out, each with the reason."""
    rows = [
        {"where": refused.where, "problem": refused.problem, "record": refused.text}
        for source in run.data.sources
        for refused in source.account.refused
    ]
    if rows:
        folder.write_lines(REJECTED, rows)
