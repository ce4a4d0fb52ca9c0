"""The final model as a folder that others load."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from torch import nn

from simpo_cli.data.model_files import read_json
from simpo_cli.data.tokenizer import TOKENIZER_FILES, template_of
from simpo_cli.errors import UserError
from simpo_cli.files import disk_faults, sync
from simpo_cli.model.adapters import save_adapters
from simpo_cli.model.folder import read_configuration
from simpo_cli.model.load import require_buildable
from simpo_cli.model.not_finite import require_finite_tensors
from simpo_cli.model.remote_code import with_imports
from simpo_cli.model.rounding import Rounding, export_dtype, measure_rounding
from simpo_cli.model.source import DTYPE_NAMES, ModelSource, find_model
from simpo_cli.recipe.schema import ModelRecipe, Recipe
from simpo_cli.redaction import redacted
from simpo_cli.run.folder import BASE, MODEL
from simpo_cli.stages import stage

_NOT_THE_TOKENIZER = {"config.json", "generation_config.json"}
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")  # how the library of safetensors passes one on


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
    if recipe.model.lora is not None:
        _name_base(saveable.peft_config["default"], folder.parent, recipe, source)
    else:
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
        if recipe.model.lora is not None:
            save_adapters(model, temporary)
        else:
            saveable.save_pretrained(temporary, safe_serialization=True)
        copy_tokenizer(source, temporary, recipe.data.chat_template)
        (temporary / "README.md").write_text(redacted(card), encoding="utf-8")
    return rounding


def _name_base(config: Any, run: Path, recipe: Recipe, source: ModelSource) -> None:
    """Let adapters name the model that they were trained beside."""
    base = source.adapter_base or source
    if keeps_merged(recipe.model):
        config.base_model_name_or_path, config.revision = str((run / BASE).absolute()), None
    elif base.revision is not None:  # by its name, where peft would put the folder of this machine's cache
        config.base_model_name_or_path, config.revision = base.name, base.revision
    else:
        config.base_model_name_or_path, config.revision = str(base.folder), None


def keeps_merged(recipe: ModelRecipe) -> bool:
    """Whether new adapters are trained beside a merge of the start model's, which the run has to keep for them."""
    return recipe.adapter == "merge" and recipe.lora is not None


def save_merged(run: Path, model: nn.Module, source: ModelSource, *, replace: bool) -> None:
    """Write RUN/base: the start model merged, as it is under the adapters that will be trained.

    Where it is there already it is written only with `replace`.

    Raises:
        UserError: the disk does not take it (exit code 4).
    """
    folder, saveable = run / BASE, cast(Any, model)
    if replace or not folder.is_dir():
        what = f"the merged start model cannot be written to {folder}"
        with disk_faults(what), written_whole(folder, replace=True) as temporary:
            saveable.save_pretrained(temporary, safe_serialization=True)
            copy_tokenizer(source, temporary, None)


def try_saving(run: Path, model: nn.Module, recipe: Recipe, source: ModelSource) -> None:
    """Write what model/ will be and read it again, before the first step instead of after the last; nothing is kept.

    Of adapters everything is read but the numbers under them. A whole model is tried without its weights: the first
    checkpoint shows that those can be written.

    Raises:
        UserError: model/ could not be written or read at the end of the run.
    """
    saveable: Any = model
    what = f"a trial of the model cannot be written to {run}"
    with disk_faults(what), written_whole(run / MODEL, keep=False) as trial:
        try:
            if recipe.model.lora is None:
                for config in (saveable.config, getattr(saveable, "generation_config", None)):
                    if config is not None:
                        config.save_pretrained(trial)
            else:
                _name_base(saveable.peft_config["default"], run, recipe, source)
                save_adapters(model, trial)
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(
                f"a model trained from {source.name} could not be saved: {' '.join(str(error).split())}",
                f"Mend the files in {source.whole.folder}: config.json, generation_config.json.",
            ) from error
        copy_tokenizer(source, trial, recipe.data.chat_template)
        if recipe.model.lora is not None:
            require_buildable(find_model(str(trial)))
        elif not source.code:  # such code is saved with the weights
            read_configuration(str(trial), trial)


@contextmanager
def written_whole(folder: Path, *, replace: bool = False, keep: bool = True) -> Iterator[Path]:
    """A folder to write into that becomes `folder` when the block ends and all is on the disk, or goes when it fails.

    With `replace` what has that name is removed, else it must be free; without `keep` the folder goes in any case.

    Raises:
        OSError: the disk did not take it; nothing is left of it.
    """
    temporary, leaving = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    _discard(temporary)
    try:
        temporary.mkdir()  # and not what is above it: a run folder that is gone stays gone
        yield temporary
        if not keep:
            shutil.rmtree(temporary)
            return
        mode = temporary.stat().st_mode & 0o666  # it follows the umask; weights are written for their owner alone
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


def copy_tokenizer(source: ModelSource, folder: Path, chat_template: str | None) -> None:
    """Copy the tokenizer's files byte for byte, with the template that the run used."""
    chain = [source]
    while chain[-1].adapter_base is not None:
        chain.append(chain[-1].adapter_base)
    origin = next((one for one in chain if (one.folder / "tokenizer.json").is_file()), source)
    names = [name for name in TOKENIZER_FILES if name not in _NOT_THE_TOKENIZER]
    for file in [*(origin.folder / name for name in names), *_code_of_tokenizer(origin.folder)]:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    if chat_template not in (None, "none"):
        shutil.copyfile(chat_template, folder / "chat_template.jinja")
        return
    found = next((text for one in chain if (text := template_of(one.folder))), None)
    if found and len(chain) > 1 and template_of(folder) != found:  # it lies apart from the tokenizer
        (folder / "chat_template.jinja").write_text(found, encoding="utf-8")


def _code_of_tokenizer(folder: Path) -> list[Path]:
    """Python files that tokenizer_config.json names for other programs; here they are copied and never run."""
    named = read_json(folder / "tokenizer_config.json").get("auto_map")
    classes = named.get("AutoTokenizer") if isinstance(named, dict) else named
    modules = [str(one).rpartition(".")[0] for one in (classes if isinstance(classes, list) else [classes]) if one]
    return [file for module in modules if module.isidentifier() for file in with_imports(folder / f"{module}.py")]
