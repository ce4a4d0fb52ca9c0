"""Resuming a run: what its folder holds of it, and which checkpoint is whole."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn, optim

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.files import MalformedError
from simpo_cli.model.tensor_file import TensorMismatchError
from simpo_cli.run.documents import LaterVersionError, of_shape, receipt_of
from simpo_cli.run.folder import CHECKPOINTS, EVALS, IDENTITY, LOGS, PROGRESS, RUN, RunFolder
from simpo_cli.run.identity import Change, Identity
from simpo_cli.run.manifest import Checkpoint, DamagedCheckpointError, find_checkpoints
from simpo_cli.train.loop import Training
from simpo_cli.train.optimizer import load_state


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run knows beside weights and moments, as it was when a checkpoint was taken.

    Attributes:
        seconds: wall time of the run so far, over all its processes.
        evaluated_at: step of the latest evaluation; -1 before the first.
        lines: lines of each log.
        self_check: outcome of the self-check, as in run.json.
        answers_before: the start model's answers to the probe questions.
        chosen_before, rejected_before: the start model's scores of the held-out pairs; None without such pairs.
        digests: sha256 of these lines of each log; empty in checkpoints of before they were taken.
        health: what the watch over the run remembers.
    """

    seconds: float
    evaluated_at: int
    lines: Mapping[str, int]
    self_check: Mapping[str, Any]
    answers_before: Sequence[str]
    chosen_before: Sequence[float] | None
    rejected_before: Sequence[float] | None
    digests: Mapping[str, str] = field(default_factory=dict)
    health: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The content of progress.json."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that looks whole, with its small files read; the large ones are verified when they are loaded."""

    checkpoint: Checkpoint
    identity: Identity
    progress: Progress

    @property
    def step(self) -> int:
        return self.checkpoint.step


@dataclass(frozen=True)
class ResumeState:
    """What a run folder holds of the run so far.

    Attributes:
        saved: checkpoints, the one saved last first.
        damaged: the others.
        document: run.json; empty where there is none.
    """

    saved: list[Saved]
    damaged: list[DamagedCheckpointError]
    document: Mapping[str, Any]

    @classmethod
    def none(cls) -> "ResumeState":
        """That of a run that begins."""
        return cls([], [], {})

    @classmethod
    def of(cls, run_dir: Path) -> "ResumeState":
        """Read a run folder, or what is there of one.

        Raises:
            UserError: there are checkpoints, and every one is damaged (exit code 4).
        """
        checkpoints, damaged = find_checkpoints(run_dir / CHECKPOINTS)
        saved = []
        for checkpoint in checkpoints:
            try:
                identity = Identity(**of_shape(IDENTITY, checkpoint.read_json(IDENTITY)))
                progress = Progress(**of_shape(PROGRESS, checkpoint.read_json(PROGRESS)))
                saved.append(Saved(checkpoint, identity, progress))
            except DamagedCheckpointError as error:
                damaged.append(error)
            except (TypeError, KeyError, ValueError, RecursionError) as error:  # whole, and saved by another version
                damaged.append(DamagedCheckpointError(checkpoint.folder, f"is of another version of simpo ({error})"))
        if damaged and not saved:
            raise _no_usable_checkpoint(damaged)
        return cls(saved, damaged, _read_document(run_dir / RUN))

    @property
    def latest(self) -> Saved | None:
        """The checkpoint to resume from, unless its large files turn out to be damaged."""
        return self.saved[0] if self.saved else None

    def changes(self, now: Identity) -> list[Change]:
        """What is not as it was when the latest checkpoint was saved."""
        return now.changes_since(self.latest.identity) if self.latest else []

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
    """Cut the logs back to the checkpoint that was loaded, and say what is not as it was.

    Returns:
        The entry of run.json's `resumed`.
    """
    note, step = training.observer.note, saved.step
    for damage in state.damaged:
        note(f"damaged checkpoint {damage}; {saved.checkpoint.folder.name} is used instead")
    lines, digests = saved.progress.lines, saved.progress.digests
    for name in LOGS:
        rows = folder.cut_back(name, lines.get(name, 0))
        if folder.lines[name] < lines.get(name, 0):
            note(f"{name} has lost lines since step {step} was saved: it has a gap")
        elif folder.digest(name) != digests.get(name, folder.digest(name)):
            note(f"{name} is damaged: up to step {step} it holds other lines than were written")
        if name == EVALS:
            training.eval_losses = {row["step"]: row["loss"] for row in rows if _is_scored(row)}
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


def _is_scored(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("step"), int) and isinstance(row.get("loss"), (int, float))
