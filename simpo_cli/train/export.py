"""The final model as a folder that others load, and how much of what training did is still in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simpo_cli.data.tokenizer import TOKENIZER_FILES
from simpo_cli.model.load import DTYPES, ModelSource, load_model
from simpo_cli.recipe.schema import Recipe
from simpo_cli.train.checkpoint import sync

_NOT_THE_TOKENIZER = {"config.json", "generation_config.json"}


@dataclass(frozen=True, slots=True)
class Rounding:
    """What the save in a narrower type did to the change that training made.

    Attributes:
        kept_share: length of the saved change along the trained change, over the length of the trained change; 1 is
        all. rounded_back_share: share of the changed weights that fell back to their start value.
    """

    kept_share: float
    rounded_back_share: float


def export_dtype(recipe: Recipe, source: ModelSource) -> torch.dtype:
    """The type of the weights in model/: the recipe's, or the start model's own."""
    return source.stored_dtype if recipe.export.dtype == "auto" else DTYPES[recipe.export.dtype]


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
    with written_whole(folder, replace=True) as temporary:
        saveable.save_pretrained(temporary, safe_serialization=True)
        copy_tokenizer(source, temporary, recipe.data.chat_template)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return rounding


@contextmanager
def written_whole(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to write into that becomes `folder` when the block ends, or goes when the block fails.

    Args:
        folder: the name it gets, once every file of it is on the disk.
        replace: remove what has that name; else it must be free.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        if replace:
            shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def measure_rounding(model: nn.Module, source: ModelSource, dtype: torch.dtype) -> Rounding:
    """Compare start, trained and saved weights, one tensor at a time.

    The start model is read once more in its stored type for this.
    """
    start = dict(load_model(source, "stored").named_parameters())
    along = length = 0.0
    changed = fell_back = 0
    with torch.no_grad():
        for name, trained in model.named_parameters():
            before = start[name].to(trained.device, torch.float32)
            after = trained.float()
            change = after - before
            saved_change = after.to(dtype).float() - before
            along += float((change * saved_change).sum(dtype=torch.float64))
            length += float((change * change).sum(dtype=torch.float64))
            moved = change != 0
            changed += int(moved.sum())
            fell_back += int((moved & (saved_change == 0)).sum())
    return Rounding(
        kept_share=along / length if length else 1.0, rounded_back_share=fell_back / changed if changed else 0.0
    )


def copy_tokenizer(source: ModelSource, folder: Path, chat_template: str | None) -> None:
    """Copy the tokenizer's files byte for byte, with the template that the run used."""
    origin = source
    while not (origin.folder / "tokenizer.json").is_file() and origin.adapter_base is not None:
        origin = origin.adapter_base
    for name in TOKENIZER_FILES:
        if name not in _NOT_THE_TOKENIZER and (origin.folder / name).is_file():
            shutil.copyfile(origin.folder / name, folder / name)
    if chat_template not in (None, "none"):
        shutil.copyfile(chat_template, folder / "chat_template.jinja")
