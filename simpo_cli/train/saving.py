"""The state of a training: saved as it goes on, and found again by the process that resumes it.

At a save the logs come first, then the checkpoint, then the older ones go, then run.json says how far the run is.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn, optim

from simpo_cli.distributed import ranks
from simpo_cli.distributed.files import commit
from simpo_cli.distributed.sharded import reshard
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.files import MalformedError, disk_faults, how_to_mend
from simpo_cli.model.not_finite import require_finite_state
from simpo_cli.model.tensor_file import TensorMismatchError
from simpo_cli.run.checkpoint import CheckpointWriter, rotate
from simpo_cli.run.documents import LaterVersionError, of_shape, receipt_of
from simpo_cli.run.folder import (
    CHECKPOINTS,
    EVALS,
    IDENTITY,
    LOGS,
    OUT_OF_MEMORY,
    PROGRESS,
    RUN,
    RunFolder,
    require_free_space,
)
from simpo_cli.run.manifest import Checkpoint, DamagedCheckpointError, Manifest, find_checkpoints, folder_name
from simpo_cli.run.receipt import Change, Identity, RunReceipt, command_to_resume
from simpo_cli.stages import stage
from simpo_cli.train.loop import Training
from simpo_cli.train.optimizer import load_state, save_state, saved_size

_SMALL_FILES = 2**20  # identity, progress and manifest, with room


@dataclass(frozen=True, slots=True)
class Progress:
    """progress.json: what a run knows beside weights and moments, as it was when a checkpoint was taken."""

    seconds: float  # wall time of the run so far, over all its processes
    evaluated_at: int  # step of the latest evaluation; -1 before the first
    lines: Mapping[str, int]  # of each log
    self_check: Mapping[str, Any]  # as in run.json
    answers_before: Sequence[str]  # the start model's, to the probe questions
    chosen_before: Sequence[float] | None  # the start model's scores of the held-out pairs, if there are any
    rejected_before: Sequence[float] | None
    # the rest is missing in checkpoints of before it was taken
    digests: Mapping[str, str] = field(default_factory=dict)  # sha256 of these lines of each log
    health: Mapping[str, Any] = field(default_factory=dict)  # what the watch over the run remembers
    checked_before: Sequence[Mapping[str, Any]] | None = None  # the start model's checked answers; None: not taken yet


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that looks whole, with its small files read; the large ones are verified when they are loaded."""

    checkpoint: Checkpoint
    identity: Identity
    progress: Progress

    @property
    def step(self) -> int:
        return self.checkpoint.step


class CheckpointSaver:
    """Saves a training in its run folder.

    Args:
        loaded: the checkpoint that the run resumes from; None for a run that begins.

    Attributes:
        saved_at: step of the latest checkpoint; None before the first.
    """

    def __init__(
        self, folder: RunFolder, training: Training, receipt: RunReceipt, identity: Identity, loaded: Saved | None
    ) -> None:
        self._folder, self._training, self._receipt, self._identity = folder, training, receipt, identity
        self._parent = folder.path / CHECKPOINTS
        self._started = time.perf_counter() - (loaded.progress.seconds if loaded else 0.0)
        self._bytes = _SMALL_FILES + saved_size(training.policy, training.optimizer)
        self.saved_at = loaded.step if loaded else None

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, over all its processes."""
        return time.perf_counter() - self._started

    def save(self) -> None:
        """Save the state after the steps done, if that has not been done; all ranks come here.

        Raises:
            UserError: the disk is full or does not take it (exit code 4), or a number of the state is not finite (exit
                code 5); the checkpoints before are as they were.
        """
        training = self._training
        done = training.steps_done
        if self.saved_at == done:
            if ranks.is_first():
                self._finish_rotation()
            return
        reshard(training.policy)
        require_finite_state(training.policy, training.optimizer, done)  # of all ranks
        ranks.together(self._make_ready, f"looking at the disk before step {done} is saved")
        try:
            with stage(f"saving the checkpoint of step {done}"):
                commit(self._parent, done, self._write_state, self._write_rest, self._identity.hashes)
        except OSError as error:
            kept = "no checkpoint is there yet" if self.saved_at is None else f"that of step {self.saved_at} is kept"
            raise UserError(
                f"the checkpoint of step {done} cannot be saved in {self._parent}: {error.strerror}; {kept}.",
                f"{how_to_mend(error)}, and resume with: {command_to_resume()}",
                exit_code=ExitCode.ENVIRONMENT,
            ) from error
        self.saved_at = done
        ranks.together(self._conclude, f"removing checkpoints before step {done}")

    def _make_ready(self) -> None:
        """Have the logs on the disk, and refuse one that is too full."""
        self._folder.sync_logs()
        if ranks.is_first():
            require_free_space(self._parent, self._bytes, f"the checkpoint of step {self._training.steps_done}")

    def _conclude(self) -> None:
        """Remove older checkpoints, and have run.json say how far the run is."""
        training = self._training
        done = training.steps_done
        if ranks.is_first():
            (self._folder.path / OUT_OF_MEMORY).unlink(missing_ok=True)  # the checkpoint knows it now
            with disk_faults(
                f"the checkpoint of step {done} is saved, and an older one cannot be removed from {self._parent}",
                f", and resume with: {command_to_resume()}",
            ):
                self._rotate()
        self._receipt.content["plan"]["tokens_per_microbatch"] = training.budget
        self._receipt.write("running", done, training.health.alerts_as_json())

    def _write_state(self, files: CheckpointWriter) -> None:
        save_state(files, self._training.policy, self._training.optimizer)

    def _write_rest(self, files: CheckpointWriter) -> None:
        training = self._training
        scores = training.start_scores
        progress = Progress(
            seconds=self.seconds,
            evaluated_at=training.evaluated_at,
            lines=dict(self._folder.lines),
            self_check=self._receipt.content["self_check"],
            answers_before=training.answers_before,
            chosen_before=None if scores is None else scores.chosen.tolist(),
            rejected_before=None if scores is None else scores.rejected.tolist(),
            digests={name: self._folder.digest(name) for name in LOGS},
            health=training.health.as_json(),
            checked_before=[asdict(one) for one in training.checked_before],
        )
        machine = {**self._identity.machine, "tokens_per_microbatch": training.budget}  # halved when memory runs out
        identity = replace(self._identity, machine=machine)
        for name, content in ((IDENTITY, identity), (PROGRESS, progress)):
            with files.open(name) as file:
                file.write(json.dumps(asdict(content)).encode())

    def _finish_rotation(self) -> None:
        """Remove what a process has left that was killed after it had saved and before the older ones were gone."""
        whole, _ = find_checkpoints(self._parent)
        if whole and whole[0].step == self.saved_at:  # this process wrote or loaded it, so every byte of it is known
            with suppress(OSError):  # the next save will say it
                self._rotate()

    def _rotate(self) -> None:
        recipe = self._training.run.recipe.checkpoint
        rotate(self._parent, recipe.keep, losses=self._training.eval_losses if recipe.best else {})


# Finding it again


@dataclass(frozen=True)
class ResumeState:
    """What a run folder holds of the run so far; nothing of a run that begins."""

    saved: list[Saved] = field(default_factory=list)  # checkpoints, the one saved last first
    damaged: list[DamagedCheckpointError] = field(default_factory=list)  # the others
    document: Mapping[str, Any] = field(default_factory=dict)  # run.json

    @classmethod
    def of(cls, run_dir: Path) -> "ResumeState":
        """Read a run folder, or what is there of one; the first rank does, and tells the others.

        Raises:
            UserError: there are checkpoints, and every one is damaged (exit code 4).
        """
        return cls._from_json(run_dir, ranks.from_first(lambda: cls._read(run_dir)._as_json(), f"reading {run_dir}"))

    @classmethod
    def _read(cls, run_dir: Path) -> "ResumeState":
        checkpoints, damaged = find_checkpoints(run_dir / CHECKPOINTS)
        saved = []
        for found in checkpoints:
            try:
                identity = Identity(**of_shape(IDENTITY, found.read_json(IDENTITY)))
                progress = Progress(**of_shape(PROGRESS, found.read_json(PROGRESS)))
                saved.append(Saved(found, identity, progress))
            except DamagedCheckpointError as error:
                damaged.append(error)
            except (TypeError, KeyError, ValueError, RecursionError) as error:  # whole, and saved by another version
                damaged.append(DamagedCheckpointError(found.folder, f"is of another version of simpo ({error})"))
        if damaged and not saved:
            raise _no_usable_checkpoint(damaged)
        return cls(saved, damaged, _read_document(run_dir / RUN))

    def _as_json(self) -> dict[str, Any]:
        saved = [
            {
                "manifest": one.checkpoint.manifest.as_bytes().decode(),
                "identity": asdict(one.identity),
                "progress": asdict(one.progress),
            }
            for one in self.saved
        ]
        damaged = [[error.folder.name, error.reason] for error in self.damaged]
        return {"saved": saved, "damaged": damaged, "document": self.document}

    @classmethod
    def _from_json(cls, run_dir: Path, content: Mapping[str, Any]) -> "ResumeState":
        parent = run_dir / CHECKPOINTS
        saved = []
        for one in content["saved"]:
            manifest = Manifest.from_bytes(one["manifest"].encode())
            found = Checkpoint(parent / folder_name(manifest.step), manifest)
            saved.append(Saved(found, Identity(**one["identity"]), Progress(**one["progress"])))
        damaged = [DamagedCheckpointError(parent / name, reason) for name, reason in content["damaged"]]
        return cls(saved, damaged, content["document"])

    @property
    def latest(self) -> Saved | None:
        """The checkpoint to resume from, unless its large files turn out to be damaged."""
        return self.saved[0] if self.saved else None

    def is_complete(self, num_steps: int) -> bool:
        """Whether the run went to its end, and this is still its end.

        Raises:
            UserError: the run is past the end that the recipe now names.
        """
        if self.latest is None:
            return False
        if self.latest.step > num_steps:
            raise UserError(
                f"the run is at step {self.latest.step}, past its end, which is step {num_steps} now.",
                "Raise train.num_epochs or train.max_steps again, or start anew with --fresh.",
                key="train.num_epochs",
            )
        return self.document.get("status") == "done" and self.latest.step == num_steps

    def load(self, policy: nn.Module, optimizer: optim.Optimizer) -> Saved:
        """Read weights and moments of the newest checkpoint that is whole; damaged ones are added to `damaged`.

        All ranks come here, and all read the same one.

        Raises:
            UserError: none is (exit code 4), or the weights are those of another model.
        """
        for saved in self.saved:
            try:
                load_state(saved.checkpoint, policy, optimizer)
            except DamagedCheckpointError as error:
                self.damaged.append(error)
            except TensorMismatchError as error:
                raise UserError(
                    f"{saved.checkpoint.folder} does not fit the model: {error}.",
                    "Put back what changed in model, or start anew with --fresh.",
                ) from error
            else:
                return saved
        raise _no_usable_checkpoint(self.damaged)


def restore_logs(
    saved: Saved, state: ResumeState, changes: Sequence[Change], folder: RunFolder, training: Training
) -> dict[str, Any]:
    """Cut the logs back to the checkpoint that was loaded; what is not as it was, for run.json's `resumed`."""
    note, step = training.observer.note, saved.step
    for damage in state.damaged:
        note(f"damaged checkpoint {damage}; {saved.checkpoint.folder.name} is used instead")
    lines, digests = saved.progress.lines, saved.progress.digests
    for name in () if folder.is_followed else LOGS:
        rows = folder.cut_back(name, lines.get(name, 0))
        if folder.lines[name] < lines.get(name, 0):
            note(f"{name} has lost lines since step {step} was saved: it has a gap")
        elif folder.digest(name) != digests.get(name, folder.digest(name)):
            note(f"{name} is damaged: up to step {step} it holds other lines than were written")
        if name == EVALS:
            scored = [row for row in rows if isinstance(row.get("step"), int)]
            losses = {row["step"]: row.get("choosing_loss", row.get("loss")) for row in scored}  # 0.1.0 had one loss
            training.eval_losses = {step: loss for step, loss in losses.items() if isinstance(loss, int | float)}
    entry: dict[str, Any] = {"from_step": step}
    for kind, name, consequence in (
        ("identity", "changed", f"another run from step {step} on"),
        ("schedule", "schedule_changed", f"another schedule from step {step} on"),
        ("machine", "not_bit_exact", f"not bit-exact from step {step}"),
    ):
        entry[name] = [change.sentence for change in changes if change.kind == kind]
        if entry[name]:
            note(f"{consequence}: {'; '.join(entry[name])}")
    note(f"resumes from step {step} of {training.run.plan.num_steps}")
    return entry


def _no_usable_checkpoint(damaged: Sequence[DamagedCheckpointError]) -> UserError:
    """The error that names every damaged checkpoint."""
    return UserError(
        f"no checkpoint in {damaged[0].folder.parent} can be used: {'; '.join(map(str, damaged))}.",
        "Put back a copy of one, or start anew with --fresh, which sets this run aside.",
        exit_code=ExitCode.ENVIRONMENT,
    )


def _read_document(file: Path) -> dict[str, Any]:
    """run.json, which is written whole; what is unreadable in spite of that is nothing that a resume depends on.

    Raises:
        UserError: a later version has written it.
    """
    try:
        return receipt_of(file.read_bytes())
    except LaterVersionError as error:
        raise UserError(f"{error}.", "Update simpo: pip install -U simpo-cli", where=str(file)) from error
    except (OSError, MalformedError):
        return {}
