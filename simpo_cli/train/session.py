"""`simpo train`: from a composed recipe to a run folder with a model in it that was loaded again and scored."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simpo_cli.distributed import ranks
from simpo_cli.distributed.files import require_shared
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.answers import answer, check_answers
from simpo_cli.model.device import device_type
from simpo_cli.model.not_finite import NotFiniteError
from simpo_cli.model.out_of_memory import OutOfMemoryError, memory_for
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
    command_with,
    now,
    recipe_sha256,
    reopen,
    require_known_keys,
    require_same_run,
)
from simpo_cli.run.stop import Stopped, StopRequest
from simpo_cli.run.verify import written_files
from simpo_cli.train.advice import suggestions
from simpo_cli.train.build import build, questions_of
from simpo_cli.train.forecast import Survey, forecast
from simpo_cli.train.header import header
from simpo_cli.train.health import UnhealthyError
from simpo_cli.train.loop import run_steps
from simpo_cli.train.observers import Recorder, Trackers
from simpo_cli.train.outcome import finish
from simpo_cli.train.run_plan import PACKAGES, RunPlan, prepare
from simpo_cli.train.saving import CheckpointSaver, ResumeState, restore_logs
from simpo_cli.versions import installed_version

_FREE_MEMORY = "Free some memory, or lower train.tokens_per_microbatch or data.max_length; model.lora needs less, too."


def train(
    composed: ComposedRecipe,
    *,
    observer: Observer,
    fresh: bool = False,
    resume: bool = False,
    allow_changed: Sequence[str] = (),
    dry_run: bool = False,
    num_processes: int | None = None,
    quick: bool = False,
) -> RunOutcome | dict[str, Any] | None:
    """Run a recipe to its end.

    Args:
        fresh: set an existing run of this name aside.
        resume: resume an existing run of this name.
        allow_changed: what may differ from the run that is resumed, by the names of `receipt.Change`.
        dry_run: check everything that can be checked without the weights, say what would happen, and write nothing.
        num_processes: of a dry run, how many processes would train; as many as there are if it is None.
        quick: skip every evaluation and all probe answers, as a smoke run may; a run that began so stays so.

    Returns:
        What the run left behind; of a dry run what it would take, see `forecast`; None if it was complete already.

    Raises:
        UserError: anything that the user can fix; see the exit codes in `errors`. A signal that stopped the run is one
            of them (exit code 75).
    """
    wanted = composed.recipe.distributed
    ranks.join(device_type(), wanted.timeout, alone=wanted.strategy == "fsdp2" and not dry_run)
    options = _Options(
        fresh=fresh,
        resume=resume,
        allow_changed=allow_changed,
        dry_run=dry_run,
        num_processes=num_processes,
        quick=quick,
    )
    try:
        return _train(composed, observer, options)
    except RuntimeError as error:
        if (lost := ranks.explained(error)) is not None:
            raise lost from error
        raise
    finally:
        ranks.leave()


@dataclass(frozen=True, kw_only=True)
class _Options:
    """How `train` was called."""

    fresh: bool
    resume: bool
    allow_changed: Sequence[str]
    dry_run: bool
    num_processes: int | None
    quick: bool


def _train(composed: ComposedRecipe, observer: Observer, options: _Options) -> RunOutcome | dict[str, Any] | None:
    run_dir, resume, dry_run = Path(composed.recipe.output_dir), options.resume, options.dry_run
    if ranks.world_size() > 1:
        packages = {f"version of {name}": installed_version(name) for name in PACKAGES}
        given = {**vars(options), "allow_changed": sorted(options.allow_changed)}
        switches = {f"value of --{name.replace('_', '-')}": value for name, value in given.items()}
        ranks.require_same(
            {**packages, "recipe": recipe_sha256(composed), **switches}, "comparing what the processes were given"
        )
    folder = trackers = None
    with StopRequest() as stop:
        try:
            if not dry_run:
                _first(lambda: require_usable(run_dir, fresh=options.fresh, resume=resume))
            if resume and not dry_run:  # locked before anything in it is read
                folder = _open_folder(run_dir, resume=True)
                _first(lambda: checkpoint.reap(run_dir / CHECKPOINTS))
            state = ResumeState.of(run_dir) if resume else ResumeState()
            before = state.latest.identity if state.latest else None
            require_known_keys(options.allow_changed, recipe_values(composed.recipe), before.recipe if before else {})
            quick = options.quick or bool(state.document.get("quick"))
            with stop.at_once():
                run = prepare(composed.recipe, before, quick=quick, resume=resume, num_ranks=options.num_processes)
                content = ranks.from_first(lambda: run.receipt(composed, state.document), "hashing the model")
            identity = run.identity(content)
            ranks.require_same(
                {"data": run.data.identity, "identity of the run": identity.hashes}, "comparing what was prepared"
            )
            changes = identity.changes_since(before) if before else []
            require_same_run(changes, options.allow_changed, str(run_dir))
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
                return forecast(Survey.of(run))
            if folder is None:
                folder = _open_folder(run_dir, fresh=options.fresh)
            require_shared(folder)
            reopen(folder, state.document, composed)
            folder.write_text(RECIPE, composed.as_yaml())
            recorder = Recorder(folder, composed.recipe.tracking.log_every, observer)
            first_step = state.latest.step if state.latest else 0
            _announce(composed, run, recorder, num_steps=num_steps, first_step=first_step)
            if ranks.is_first():
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


def _first(work: Callable[[], Any]) -> None:
    """Done by the first rank; what it refuses is refused on all."""
    ranks.together(lambda: work() if ranks.is_first() else None, "opening the run folder")


def _open_folder(run_dir: Path, **options: bool) -> RunFolder:
    """The run folder, locked by the first rank, which alone writes into it."""
    made: list[RunFolder] = []
    _first(lambda: made.append(RunFolder.create(run_dir, **options)))
    return made[0] if made else RunFolder.follow(run_dir)


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
    receipt.content["plan"]["tokens_per_microbatch"] = training.budget
    if training.memory is not None:
        receipt.content["plan"]["memory"] = training.memory
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

    def write_error(status: str, step: int, error: UserError, **more: Any) -> None:
        records = {"records": error.records} if isinstance(error, NotFiniteError) else {}
        with suppress(UserError):  # a disk that did not take the checkpoint may not take this either
            write_receipt(status, step, outcome={"error": str(error), **records, **more})

    write_receipt("running", training.steps_done)
    questions, num_steps = questions_of(run), run.plan.num_steps
    stop.is_agreed = ranks.world_size() > 1
    try:
        with memory_for(f"the run, after step {training.steps_done}", _FREE_MEMORY):
            if loaded is None:
                with stop.at_once():
                    policy, tokenizer = training.policy, run.data.tokenizer
                    training.answers_before = answer(policy, questions, tokenizer, run.accelerator)
                    training.checked_before = check_answers(policy, training.checkable, tokenizer, run.accelerator)
            run_steps(training, saver.save)
            outcome, measured = finish(training, questions, folder, saver)
    except Stopped as stopped:
        if training.steps_done > 0:
            saver.save()
        write_receipt("stopped", training.steps_done)
        error = _stopped(stopped, f"after step {training.steps_done} of {num_steps}; everything is saved")
        error.is_shared = stop.is_agreed
        raise error from None
    except UnhealthyError as error:
        suggested = suggestions(run.recipe, [alert.code for alert in training.health.alerts])
        for one in suggested[:1]:
            anew = command_with(*one.overrides, f"output_dir={folder.path}-2")
            error.fix = f"Train anew with: {anew}\n  {error.fix}"
        write_error("stopped", training.steps_done, error, suggestions=[one.as_json() for one in suggested])
        raise
    except OutOfMemoryError as error:
        # one process has the weights of the last whole step; others may be anywhere in it
        if training.steps_done > 0 and ranks.world_size() == 1:
            saver.save()
        write_error("failed", saver.saved_at or 0, error)
        raise OutOfMemoryError(
            f"{error.problem} The state after step {saver.saved_at or 0} is saved.",
            f"{error.fix} Then resume with: {command_to_resume()}",
            exit_code=error.exit_code,
        ) from error
    except UserError as error:
        error.is_shared |= ranks.world_size() > 1 and isinstance(error, NotFiniteError)
        write_error("failed", saver.saved_at or 0, error)
        raise
    folder.sync_logs()  # before run.json vouches for them
    write_receipt("done", num_steps, outcome=measured, files=written_files(folder.path) if ranks.is_first() else {})
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
