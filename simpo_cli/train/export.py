"""The final model as a folder that others load, and how much of what training did is still in it."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from simpo_cli.data.model_files import read_json
from simpo_cli.data.tokenizer import TOKENIZER_FILES
from simpo_cli.data.writing import sync
from simpo_cli.model.load import DTYPE_NAMES, DTYPES, ModelSource, load_model
from simpo_cli.model.own_code import with_imports
from simpo_cli.recipe.schema import Recipe
from simpo_cli.redaction import redacted
from simpo_cli.stages import stage
from simpo_cli.train.not_finite import require_finite_tensors

_NOT_THE_TOKENIZER = {"config.json", "generation_config.json"}
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")  # how the library of safetensors passes one on


@dataclass(frozen=True, slots=True)
class Rounding:
    """What the save in a narrower type did to the change that training made.

    Attributes:
        kept_share: length of the saved change along the trained change, over the length of the trained change; 1 is
        all. rounded_back_share: share of the changed weights that fell back to their start value.
    """

    kept_share: float
    rounded_back_share: float


class RoundingSums:
    """Adds up what rounding does to the change of each tensor."""

    def __init__(self) -> None:
        self._along = self._length = self._changed = self._fell_back = 0.0

    @torch.no_grad()
    def add(self, before: Tensor, after: Tensor, dtype: torch.dtype, *, weight: float = 1.0) -> None:
        """Compare a tensor before training, after it, and after it in another type.

        Args:
            before, after: of one shape, in any type.
            dtype: the type of the save.
            weight: what each value counts for, where the tensor is a sample of a larger one.
        """
        before, after = before.float(), after.float()
        change, saved_change = after - before, after.to(dtype).float() - before
        moved = change != 0
        self._along += weight * float((change * saved_change).sum(dtype=torch.float64))
        self._length += weight * float((change * change).sum(dtype=torch.float64))
        self._changed += weight * int(moved.sum())
        self._fell_back += weight * int((moved & (saved_change == 0)).sum())

    @property
    def rounding(self) -> Rounding:
        """The shares; all is kept where nothing changed."""
        return Rounding(
            kept_share=self._along / self._length if self._length else 1.0,
            rounded_back_share=self._fell_back / self._changed if self._changed else 0.0,
        )


def export_dtype(recipe: Recipe, source: ModelSource) -> torch.dtype:
    """The type of the weights in model/: the recipe's, or the start model's own."""
    return source.stored_dtype if recipe.export.dtype == "auto" else DTYPES[recipe.export.dtype]


@stage("saving the model")
def save_model(folder: Path, model: nn.Module, recipe: Recipe, source: ModelSource, card: str) -> Rounding | None:
    """Write model/: weights, configuration, tokenizer, chat template and a card, whole or not at all.

    A fully tuned model is converted to the export type in place, so it cannot be trained further afterwards. An adapter
    is written as peft keeps it, and the base model is named, not copied.

    Returns:
        What rounding did, or None where nothing was rounded (adapters, or an export type as wide as the weights).
    """
    rounding = None
    saveable: Any = model
    if recipe.model.lora is not None and source.revision is not None:
        config = saveable.peft_config["default"]  # by its name, where peft would put the folder of this machine's cache
        config.base_model_name_or_path, config.revision = source.name, source.revision
    if recipe.model.lora is None:
        dtype = export_dtype(recipe, source)
        if dtype.itemsize < next(model.parameters()).element_size():
            rounding = measure_rounding(model, source, dtype)
        model.to(dtype)
        require_finite_tensors(
            model.named_parameters(),
            f"model/ in export.dtype {DTYPE_NAMES[dtype]}",
            "The last checkpoint is kept; a wider export.dtype holds larger numbers.",
        )
    with written_whole(folder, replace=True) as temporary:
        saveable.save_pretrained(temporary, safe_serialization=True)
        copy_tokenizer(source, temporary, recipe.data.chat_template)
        (temporary / "README.md").write_text(redacted(card), encoding="utf-8")
    return rounding


@contextmanager
def written_whole(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to write into that becomes `folder` when the block ends, or goes when the block fails.

    Args:
        folder: the name it gets, once every file of it is on the disk.
        replace: remove what has that name; else it must be free.

    Raises:
        OSError: the disk did not take it; nothing is left of it.
    """
    temporary, leaving = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    _discard(temporary)
    try:
        temporary.mkdir()  # and not what is above it: a run folder that is gone stays gone
        yield temporary
        mode = (
            temporary.stat().st_mode & 0o666
        )  # the folder follows the umask; weights are written for their owner alone
        for file in temporary.iterdir():
            file.chmod(mode)
            sync(file)
        sync(temporary)
        if replace and os.path.lexists(folder):
            _discard(leaving)
            folder.rename(leaving)  # all of it at once: no half of it is ever taken for a model
        temporary.rename(folder)
        sync(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, SafetensorError) and (number := _SYSTEM_ERROR.search(str(error))):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise
    _discard(leaving)


def _discard(folder: Path) -> None:
    """Remove a folder that may be there; of a link the link alone."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


@stage("comparing saved weights with those of the start")
def measure_rounding(model: nn.Module, source: ModelSource, dtype: torch.dtype) -> Rounding:
    """Compare start, trained and saved weights, one tensor at a time.

    The start model is read once more in its stored type for this.
    """
    start = dict(load_model(source, "stored").named_parameters())
    sums = RoundingSums()
    for name, trained in model.named_parameters():
        sums.add(start[name].to(trained.device), trained, dtype)
    return sums.rounding


def copy_tokenizer(source: ModelSource, folder: Path, chat_template: str | None) -> None:
    """Copy the tokenizer's files byte for byte, with the template that the run used."""
    origin = source
    while not (origin.folder / "tokenizer.json").is_file() and origin.adapter_base is not None:
        origin = origin.adapter_base
    names = [name for name in TOKENIZER_FILES if name not in _NOT_THE_TOKENIZER]
    for file in [*(origin.folder / name for name in names), *_code_of_tokenizer(origin.folder)]:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    if chat_template not in (None, "none"):
        shutil.copyfile(chat_template, folder / "chat_template.jinja")


def _code_of_tokenizer(folder: Path) -> list[Path]:
    """Python files that tokenizer_config.json names for other programs; here they are copied and never run."""
    named = read_json(folder / "tokenizer_config.json").get("auto_map")
    classes = named.get("AutoTokenizer") if isinstance(named, dict) else named
    modules = [str(one).rpartition(".")[0] for one in (classes if isinstance(classes, list) else [classes]) if one]
    return [file for module in modules if module.isidentifier() for file in with_imports(folder / f"{module}.py")]
