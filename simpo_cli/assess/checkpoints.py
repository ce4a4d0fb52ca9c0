"""The weights of a checkpoint, put into the model that its run started from."""

from pathlib import Path

import torch
from torch import nn

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.load import Load, ModelSource, load_start, settle_adapter
from simpo_cli.model.policy import Policy, trainable
from simpo_cli.recipe.schema import Recipe
from simpo_cli.run.manifest import DamagedCheckpointError, find_checkpoints, open_checkpoint
from simpo_cli.train.run_folder import WEIGHTS
from simpo_cli.train.tensor_file import TensorMismatchError, read_tensors


def require_whole(folder: Path) -> None:
    """Refuse a checkpoint that is seen from outside to be damaged; its bytes are looked at when they are read.

    Raises:
        UserError: says what is wrong with it (exit code 4).
    """
    try:
        open_checkpoint(folder)
    except DamagedCheckpointError as error:
        raise _damaged(error) from error


def loader_of(folder: Path, recipe: Recipe) -> Load:
    """What reads the start model and then the checkpoint's weights over it.

    Args:
        folder: the checkpoint.
        recipe: its run's; says whether adapters were trained.
    """

    def load(source: ModelSource, dtype: torch.dtype, device: torch.device) -> nn.Module:
        start = settle_adapter(recipe.model, source)
        model = load_start(start, source, dtype, device)
        if start.lora is not None and start.adapter != "continue":
            model = add_adapters(model, start.lora)
        try:
            with open_checkpoint(folder).open(WEIGHTS) as file:
                read_tensors(file, trainable(Policy(model)))
        except DamagedCheckpointError as error:
            raise _damaged(error) from error
        except TensorMismatchError as error:
            raise UserError(
                f"{folder} does not fit the model {source.name}: {error}.",
                "The run's start model is not what it was; put it back, or score the run's model/.",
            ) from error
        return model

    return load


def last_checkpoint(run: Path, steps: int) -> Path | None:
    """The checkpoint that was taken after the last step of a run, if it is still there."""
    whole, _ = find_checkpoints(run / "checkpoints")
    return next((checkpoint.folder for checkpoint in whole if checkpoint.step == steps), None)


def _damaged(error: DamagedCheckpointError) -> UserError:
    return UserError(
        f"the checkpoint {error.folder} is damaged: {error.reason}.",
        "Score another one of the run, or its model/.",
        exit_code=ExitCode.ENVIRONMENT,
    )
