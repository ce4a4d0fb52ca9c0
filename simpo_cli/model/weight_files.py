"""The files of a model's weights, and what their headers say of them: names, shapes and types, without the numbers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from simpo_cli.data.model_files import quantised, read_json
from simpo_cli.data.writing import exit_code_of
from simpo_cli.errors import UserError

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float32}
# Numbers of a byte and less, or packed into integers. Masks and counters of a model are integers too, by other names.
_NARROW = re.compile("[FE][4-8].*")
_PACKED = re.compile(r"(^|[._])(q?weight(_packed)?|w_q|blocks)$")
LAYER = re.compile(r"\.(\d+)\.")  # its first number in the name of a tensor, as in model.layers.7.mlp.up.weight


class NoWeightsError(UserError):
    """A model's folder without weights that can be read here."""


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """What the headers of a model's weight files say.

    Attributes:
        sizes: how many numbers each tensor holds, by its name.
        dtype: the type that most numbers have; float32 when they are of none that is known here.
    """

    sizes: Mapping[str, int]
    dtype: torch.dtype

    @property
    def num_layers(self) -> int:
        """Layers that there are tensors of, by the first number in their names."""
        found = [LAYER.search(name) for name in self.sizes]
        return max((int(one[1]) for one in found if one), default=-1) + 1


def stored_weights(name: str, folder: Path, held_by: str = "") -> StoredWeights:
    """Look at a model's weight files.

    Args:
        name: the model, as the recipe or adapters name it.
        folder: holds them.
        held_by: the adapter_config.json that names the model, if it is not the recipe that does.

    Raises:
        UserError: they are missing, incomplete, damaged, pickled or quantised.
    """
    from safetensors import SafetensorError, safe_open

    sizes: dict[str, int] = {}
    counts: dict[torch.dtype, int] = {}
    for file in _files_of(name, folder):
        try:
            with safe_open(file, framework="numpy") as weights:
                for key in weights.keys():  # noqa: SIM118 - not a mapping
                    entry = weights.get_slice(key)
                    kind = entry.get_dtype()
                    if _NARROW.fullmatch(kind) or (kind not in _DTYPES and _PACKED.search(key)):
                        raise quantised(name, f"{key} is of type {kind}", held_by)
                    size = 1
                    for extent in entry.get_shape():
                        size *= extent
                    sizes[key] = size
                    dtype = _DTYPES.get(kind, torch.float32)
                    counts[dtype] = counts.get(dtype, 0) + size
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"cannot be read: {error}",
                "The weights are damaged or cut short; fetch the model again.",
                where=str(file),
                exit_code=exit_code_of(error),
            ) from error
    return StoredWeights(sizes, max(counts, key=lambda dtype: counts[dtype]) if counts else torch.float32)


def _files_of(name: str, folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / shard for shard in _shard_names(index)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise UserError(
                f"{name} lacks {len(missing)} of its {len(files)} weight files, such as {missing[0]}.",
                "Fetch the model again; the download was not finished.",
            )
        return files
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    raise no_weights(name, folder, "*.safetensors")


def _shard_names(index: Path) -> list[str]:
    """The files of sharded weights: names of safetensors files beside their index, and nothing else."""
    named = read_json(index).get("weight_map")
    names: list[Any] = list(named.values()) if isinstance(named, dict) else [None]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(
                f"names {name!r} as a file of weights, which is no safetensors file beside it.",
                "Fetch the model again, or convert its weights to safetensors.",
                where=str(index),
            )
    return sorted(set(names))


def no_weights(name: str, folder: Path, wanted: str) -> NoWeightsError:
    """What is said of a folder without the weights that are wanted."""
    if any(file.suffix in _PICKLED for file in folder.iterdir()):
        return NoWeightsError(
            f"{name} holds only pickled weights, which can run code when they are read.",
            "Convert them once: AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER) writes safetensors.",
        )
    return NoWeightsError(f"{name} holds no weights ({wanted}).", "Fetch the model again, weights included.")
