"""After the last step: the model as others load it, and what it is worth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simpo_cli.data.writing import how_to_mend
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.answers import Question, answer
from simpo_cli.model.load import DTYPE_NAMES, find_model, load_model
from simpo_cli.model.policy import Policy
from simpo_cli.model.rounding import export_dtype
from simpo_cli.stages import stage
from simpo_cli.train.events import RunOutcome
from simpo_cli.train.export import save_model
from simpo_cli.train.loop import Training
from simpo_cli.train.model_card import Trained, model_card, write_card
from simpo_cli.train.outcome import conclude
from simpo_cli.train.receipt import command_to_resume
from simpo_cli.train.run_folder import RunFolder
from simpo_cli.train.saving import CheckpointSaver
from simpo_cli.train.setting import Setting


def finish(
    training: Training,
    setting: Setting,
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
