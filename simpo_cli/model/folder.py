"""What a model's folder says before any number is read: configuration and class, names, shapes and types of weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from simpo_cli.data.model_files import (
    Quantization,
    quantised,
    read_json,
    require_regular_files,
    sections_of,
    stored_quantization,
)
from simpo_cli.errors import UserError
from simpo_cli.files import exit_code_of
from simpo_cli.model import remote_code
from simpo_cli.names import wrong_kind

_NAME_CAUSAL = "SimPO scores text from left to right: name a causal language model."
_ALWAYS_DECODERS = ("gpt_neox", "gpt_neox_japanese")  # their configurations have is_decoder, and nothing reads it
_OTHER_HEAD = re.compile("For(?!CausalLM|ConditionalGeneration)[A-Z]")  # such as ForMaskedLM, ForSequenceClassification
_MEND = "Mend it, or fetch the model again: the folder is damaged, or was never a model."
_SIZES = (  # of keys by name: the least that a model needs (some say -1 for none), and far more than any model has
    (re.compile("num_hidden_layers|n_layers?|num_layers"), 1, 2_000),
    (re.compile("hidden_size|n_embd|d_model|head_dim"), 1, 2**20),
    (re.compile("num_attention_heads|n_heads?"), 1, 2**16),
    (re.compile("vocab_size"), 1, 2**24),
    (re.compile("max_position_embeddings|n_positions"), 1, 2**40),
    (re.compile("sliding_window"), 0, 2**40),
    (re.compile("intermediate_size|num_key_value_heads"), 1, 2**20),
    (re.compile(r"\w*experts?\w*"), -1, 2**16),
    (re.compile(r"\w*layers?|\w*blocks?"), -(2**10), 2_000),
    (re.compile(r"\w*(_size|_dim|_rank|_heads|_inner)"), -1, 2**24),
)
_NUMBERS = re.compile(r"rope_theta|(\w+_)?factor|\w+_eps(ilon)?")  # which some models put into sums unlooked at
_NEEDED_OF_REMOTE_CODE = ("vocab_size", "hidden_size", "num_hidden_layers")

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float32}
# Numbers of a byte and less, or packed into integers. Masks and counters of a model are integers too, by other names.
_NARROW = re.compile("[FE][4-8].*")
_PACKED = re.compile(r"(^|[._])(q?weight(_packed)?|w_q|blocks)$")
LAYER = re.compile(r"\.(\d+)\.")  # its first number in the name of a tensor, as in model.layers.7.mlp.up.weight


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a model folder says of its model."""

    config: Any  # the configuration, an object of transformers or of the model's remote code
    model_class: type  # what computes the model
    code: Mapping[str, str]  # files of remote code that were run for it, each with its sha256; mostly none
    quantization: Quantization | None  # of the weights beside it


def read_configuration(path: str, folder: Path, held_by: str = "") -> Configuration:
    """Read config.json, and run remote code where that is named and `remote_code.trusting` allows it.

    Args:
        held_by: the adapter_config.json that names the model, if it is not the recipe that does.

    Raises:
        UserError: there is none, it is none of a causal language model, its weights are quantised in a way that is not
            read here, a size in it is none that a model has, or the model needs code that may not be run.
    """
    read = read_config(path, folder, remote_code.CAUSAL, held_by)
    _require_causal(path, read.raw, read.config, read.code)
    with remote_code.faults_of(path, read.code):
        return Configuration(read.config, _class_of(path, folder, read.config, read.code), read.code, read.quantization)


class ReadConfig(NamedTuple):
    """A config.json, of whatever model, and what it says of loading that."""

    raw: Mapping[str, Any]
    config: Any
    code: Mapping[str, str]  # as in `Configuration`
    quantization: Quantization | None


def read_config(path: str, folder: Path, model: str, held_by: str = "") -> ReadConfig:
    """The same of a model that is loaded as something else; `model` is its name in auto_map. Raises UserError too."""
    if not (folder / "config.json").is_file():
        fix = "Name the folder of a model that transformers can load."
        raise wrong_kind(path, "model") or UserError(f"{path} holds no config.json.", fix)
    require_regular_files(folder)
    raw = read_json(folder / "config.json")
    quantization = stored_quantization(path, folder, held_by)
    _refuse_foreign_parts(path, raw)
    _require_sizes(path, raw)
    code = remote_code.code_to_run(path, folder, raw, model)
    return ReadConfig(raw, _read(path, folder, raw, code), code, quantization)


def _read(path: str, folder: Path, raw: Mapping[str, Any], code: Mapping[str, str]) -> Any:
    import transformers
    from transformers import CONFIG_MAPPING, AutoConfig

    if code:
        with remote_code.faults_of(path, code):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        if missing := [key for key in _NEEDED_OF_REMOTE_CODE if not isinstance(getattr(config, key, None), int)]:
            raise UserError(
                f"the configuration of {path} does not say its {', '.join(missing)}.",
                "Its own class has to give them, by these names or by attribute_map.",
            )
        return config
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises ValueError, KeyError, OSError and validation errors here
        if "auto_map" in raw and not remote_code.is_trusted():
            raise remote_code.NeedsRemoteCodeError(path) from error
        if raw.get("model_type") in CONFIG_MAPPING:
            raise unbuildable(path, raw, error) from error
        raise UserError(
            f"{path} is not a model that transformers {transformers.__version__} knows: {str(error).splitlines()[0]}",
            "Check config.json (its model_type), or use a newer transformers.",
        ) from error


def _require_causal(path: str, raw: Mapping[str, Any], config: Any, code: Mapping[str, str]) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = raw.get("model_type", "nameless")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not (code and _brings_causal(config)):
        if _brings_causal(config):
            raise remote_code.NeedsRemoteCodeError(path)
        raise UserError(f"{path} is a {kind} model, which is no causal language model.", _NAME_CAUSAL)
    if getattr(config, "is_decoder", None) is False and kind not in _ALWAYS_DECODERS:
        raise UserError(
            f"{path} is a {kind} model that reads text in both directions (is_decoder is false).", _NAME_CAUSAL
        )
    architectures = config.architectures or []
    if architectures and all(_OTHER_HEAD.search(str(name)) for name in architectures):
        raise UserError(f"{path} holds a {architectures[0]}, which is no causal language model.", _NAME_CAUSAL)


def _brings_causal(config: Any) -> bool:
    return remote_code.CAUSAL in (getattr(config, "auto_map", None) or {})


def _class_of(path: str, folder: Path, config: Any, code: Mapping[str, str]) -> type:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if code and _brings_causal(config):
        return remote_code.class_of(path, folder, config)
    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    of_transformers: type = known[type(config)]
    return of_transformers


def _require_sizes(path: str, raw: Mapping[str, Any]) -> None:
    """Refuse sizes that no model has, before anything of them is made: 10^9 layers would take forever."""
    for section in sections_of(raw):
        for key, value in section.items():
            if _NUMBERS.fullmatch(key) and isinstance(value, str):
                raise UserError(f"the config.json of {path} says {key} is {value!r}, which is no number.", _MEND)
            limits = next(((least, most) for name, least, most in _SIZES if name.fullmatch(key)), None)
            if limits is None or not isinstance(value, int):
                continue
            least, most = limits
            if not least <= value <= most:
                raise UserError(
                    f"the config.json of {path} says {key} is {value}, which has to be from {least} to {most}.", _MEND
                )


def unbuildable(path: str, config: Mapping[str, Any], error: Exception) -> UserError:
    """The error where transformers cannot make a model of a configuration: its reason, and the key that it names."""
    reason = " ".join(str(error).split()) or "it gives no reason"
    named = {key: value for section in sections_of(config) for key, value in section.items()}
    words = set(re.findall(r"\w+", reason))
    keys = [key for key, value in named.items() if key in words or (isinstance(value, str) and value in words)]
    shown = ", ".join(f"{key}: {named[key]!r}" for key in keys[:3] if not isinstance(named[key], dict))
    return UserError(
        f"transformers cannot build {path} from its config.json{f' ({shown})' if shown else ''}: "
        f"{'' if type(error).__name__.startswith('Strict') else f'{type(error).__name__}: '}{reason[:300]}",
        _MEND,
    )


def _refuse_foreign_parts(path: str, raw: Mapping[str, Any]) -> None:
    """Refuse a configuration by which transformers would load compiled code of the hub, or a file of another name."""
    for section in sections_of(raw):
        for key, value in section.items():
            if key == "transformers_weights" and value is not None:
                problem = f"names {value!r} as the file of its weights"
            elif key.endswith("_implementation") and "/" in str(value):
                problem = f"asks for code of the hub ({key}: {value!r})"
            else:
                continue
            raise UserError(f"the config.json of {path} {problem}, which is not loaded.", f"Take {key} out of it.")


# The files of its weights


class NoWeightsError(UserError):
    """A model's folder without weights that can be read here."""


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """What the headers of a model's weight files say."""

    sizes: Mapping[str, int]  # how many numbers each tensor holds, by its name
    dtype: torch.dtype  # the type that most numbers have; float32 when they are of none that is known here

    @property
    def num_layers(self) -> int:
        """Layers that there are tensors of, by the first number in their names."""
        found = [LAYER.search(name) for name in self.sizes]
        return max((int(one[1]) for one in found if one), default=-1) + 1


def stored_weights(
    name: str, folder: Path, held_by: str = "", quantization: Quantization | None = None
) -> StoredWeights:
    """Look at a model's weight files.

    Args:
        held_by: the adapter_config.json that names the model, if it is not the recipe that does.
        quantization: how config.json says that its weights are quantised.

    Raises:
        UserError: they are missing, incomplete, damaged, pickled, or quantised though config.json does not say so.
    """
    from safetensors import SafetensorError, safe_open

    sizes: dict[str, int] = {}
    counts: dict[torch.dtype, int] = {}
    for file in weight_files(name, folder):
        try:
            with safe_open(file, framework="numpy") as weights:
                for key in weights.keys():  # noqa: SIM118 - not a mapping
                    entry = weights.get_slice(key)
                    kind = entry.get_dtype()
                    if quantization is not None and kind not in _DTYPES:
                        continue  # codes, and scales that are quantised themselves
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


def weight_files(name: str, folder: Path) -> list[Path]:
    """The safetensors files of a model; UserError where some are missing."""
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
    """The error for a folder without the weights that are wanted."""
    if any(file.suffix in _PICKLED for file in folder.iterdir()):
        return NoWeightsError(
            f"{name} holds only pickled weights, which can run code when they are read.",
            "Convert them once: AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER) writes safetensors.",
        )
    return NoWeightsError(f"{name} holds no weights ({wanted}).", "Fetch the model again, weights included.")
