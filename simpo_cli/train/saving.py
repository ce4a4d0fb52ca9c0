"""When the run saves: logs first, then the checkpoint, then the older ones go, then run.json says how far it is."""

import json
import time
from contextlib import suppress
from dataclasses import replace

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.files import disk_faults, how_to_mend
from simpo_cli.model.not_finite import require_finite_state
from simpo_cli.model.policy import trainable
from simpo_cli.run import checkpoint
from simpo_cli.run.checkpoint import CheckpointWriter
from simpo_cli.run.folder import CHECKPOINTS, IDENTITY, LOGS, PROGRESS, RunFolder, require_free_space
from simpo_cli.run.identity import Identity
from simpo_cli.run.manifest import find_checkpoints
from simpo_cli.run.receipt import RunReceipt, command_to_resume
from simpo_cli.stages import stage
from simpo_cli.train.loop import Training
from simpo_cli.train.optimizer import save_state
from simpo_cli.train.resume import Progress, Saved

_SMALL_FILES = 2**20  # identity, progress and manifest, with room


class CheckpointSaver:
    """Saves a training in its run folder.

    Args:
        folder: the run's folder.
        training: what is saved.
        receipt: run.json.
        identity: of the run.
        loaded: the checkpoint that the run resumes from; None for a run that begins.

    Attributes:
        saved_at: step of the latest checkpoint; None before the first.
    """

    def __init__(
        self,
        folder: RunFolder,
        training: Training,
        receipt: RunReceipt,
        identity: Identity,
        loaded: Saved | None,
    ) -> None:
        self._folder, self._training, self._receipt, self._identity = folder, training, receipt, identity
        self._parent = folder.path / CHECKPOINTS
        self._started = time.perf_counter() - (loaded.progress.seconds if loaded else 0.0)
        self._bytes = _SMALL_FILES + sum(3 * p.numel() * p.element_size() for p in trainable(training.policy).values())
        self.saved_at = loaded.step if loaded else None

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, over all its processes."""
        return time.perf_counter() - self._started

    def save(self) -> None:
        """Save the state after the steps done, if that has not been done.

        Raises:
            UserError: the disk is full or does not take it (exit code 4), or a number of the state is not finite (exit
                code 5); the checkpoints before are as they were.
        """
        training = self._training
        done = training.steps_done
        if self.saved_at == done:
            self._finish_rotation()
            return
        require_finite_state(training.policy, training.optimizer, done)
        self._folder.sync_logs()
        require_free_space(self._parent, self._bytes, f"the checkpoint of step {done}")
        try:
            with stage(f"saving the checkpoint of step {done}"):
                checkpoint.commit(self._parent, done, self._write, self._identity.hashes)
        except OSError as error:
            kept = "no checkpoint is there yet" if self.saved_at is None else f"that of step {self.saved_at} is kept"
            raise UserError(
                f"the checkpoint of step {done} cannot be saved in {self._parent}: {error.strerror}; {kept}.",
                f"{how_to_mend(error)}, and resume with: {command_to_resume()}",
                exit_code=ExitCode.ENVIRONMENT,
            ) from error
        self.saved_at = done
        with disk_faults(
            f"the checkpoint of step {done} is saved, and an older one cannot be removed from {self._parent}",
            f", and resume with: {command_to_resume()}",
        ):
            self._rotate()
        self._receipt.content["plan"]["tokens_per_microbatch"] = training.budget
        self._receipt.write("running", done, training.health.alerts_as_json())

    def _write(self, files: CheckpointWriter) -> None:
        training = self._training
        save_state(files, training.policy, training.optimizer)
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
        )
        machine = {**self._identity.machine, "tokens_per_microbatch": training.budget}  # halved when memory runs out
        identity = replace(self._identity, machine=machine)
        for name, content in ((IDENTITY, identity.as_json()), (PROGRESS, progress.as_json())):
            with files.open(name) as file:
                file.write(json.dumps(content).encode())

    def _finish_rotation(self) -> None:
        """Remove what a process has left that was killed after it had saved and before the older ones were gone."""
        whole, _ = find_checkpoints(self._parent)
        if whole and whole[0].step == self.saved_at:  # this process wrote or loaded it, so every byte of it is known
            with suppress(OSError):  # the next save will say it
                self._rotate()

    def _rotate(self) -> None:
        recipe = self._training.run.recipe.checkpoint
        checkpoint.rotate(self._parent, recipe.keep, losses=self._training.eval_losses if recipe.best else {})
