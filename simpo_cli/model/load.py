"""Finding, checking and loading a causal language model; what can be known without the weights is asked first."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from simpo_cli.builtin import guide_model_dir
from simpo_cli.data import network
from simpo_cli.data.model_files import read_json
from simpo_cli.data.writing import exit_code_of
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model import own_code
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.configuration import read_configuration
from simpo_cli.recipe.schema import ModelRecipe
from simpo_cli.stages import stage

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES.values()}

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_WEIGHT_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
_CARD = "README.md"  # which states the licence
_CODE = "*.py"


@dataclass(frozen=True)
class ModelSource:
    """A model before its weights are read.

    Attributes:
        name: as the recipe names it.
        folder: the local folder that holds it.
        config: its configuration.
        model_class: what computes it, a class of transformers or of the model's own code.
        revision: the commit that a hub id resolved to, or None.
        stored_dtype: type of the weights on disk.
        adapter_base: the model under it, when the folder holds a peft adapter.
        code: files of the model's own code that are run, each with its sha256; of an adapter those of its base.
    """

    name: str
    folder: Path
    config: Any
    model_class: type
    revision: str | None
    stored_dtype: torch.dtype
    adapter_base: "ModelSource | None" = None
    code: Mapping[str, str] = field(default_factory=dict)

    @property
    def text_config(self) -> Any:
        return self.config.get_text_config()

    @property
    def max_length(self) -> int | None:
        """Most positions that the model knows, or None when its configuration does not say."""
        return getattr(self.text_config, "max_position_embeddings", None)


def find_model(path: str, revision: str | None = None, *, fetch: bool = True) -> ModelSource:
    """Locate a model and read its configuration; the weights are looked at, not loaded.

    Args:
        path: a folder, a hub id or `builtin:guide`.
        revision: branch, tag or commit of a hub id.
        fetch: whether a model of the hub may be downloaded; else it has to be on this machine already.

    Raises:
        UserError: nothing is there, it is no causal language model, it needs code of its own, or its weights are
            missing, incomplete or pickled.
    """
    return _found(path, revision, fetch, ())


def _found(path: str, revision: str | None, fetch: bool, above: tuple[Path, ...]) -> ModelSource:
    folder, commit = _locate(path, revision, fetch=fetch)
    if (folder / "adapter_config.json").is_file():
        if folder.resolve() in above:
            raise UserError(
                f"the adapters in {path} are adapters of themselves.",
                "Mend base_model_name_or_path in adapter_config.json.",
            )
        base = _found(*_adapter_base(path, folder), fetch, (*above, folder.resolve()))
        return replace(base, name=path, folder=folder, revision=commit, adapter_base=base)
    read = read_configuration(path, folder)
    weights = _weight_files(path, folder)
    return ModelSource(path, folder, read.config, read.model_class, commit, _stored_dtype(weights), code=read.code)


def _locate(path: str, revision: str | None, *, fetch: bool) -> tuple[Path, str | None]:
    if path == "builtin:guide":
        return guide_model_dir(), None
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder, None
    if folder.exists():
        raise UserError(f"{path} is a file, not a model folder.", "Name the folder that holds config.json.")
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(
            f"the model folder {path} does not exist.",
            "Check model.path; it is a folder, a hub id (organisation/model) or builtin:guide.",
        )
    import huggingface_hub

    wanted = [*_WEIGHT_PATTERNS, _CARD, *([_CODE] if own_code.is_trusted() else [])]
    try:
        with stage(f"fetching {path} from the hub"):
            local = Path(
                huggingface_hub.snapshot_download(
                    path, revision=revision, allow_patterns=wanted, local_files_only=not fetch or network.is_offline()
                )
            )
    except Exception as error:  # the hub client raises many types, from httpx, OSError and its own
        if not fetch:
            raise UserError(
                f"the weights of {path} are not on this machine.",
                "simpo train and simpo eval fetch them.",
                exit_code=ExitCode.ENVIRONMENT,
            ) from error
        if network.is_offline():
            raise network.not_here(path, "model") from error
        raise UserError(
            f"{path} is not a folder here, and the model hub did not give it: {type(error).__name__}.",
            "Check the name and the network, or name a local folder; gated models need a login.",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error
    return local, local.name  # a snapshot's folder is named by its commit


def _adapter_base(path: str, folder: Path) -> tuple[str, str | None]:
    """The model under adapters and its commit, after a look at what peft would make of their folder."""
    config = read_json(folder / "adapter_config.json")
    base, where = config.get("base_model_name_or_path"), str(folder / "adapter_config.json")
    if not isinstance(base, str) or not base:
        raise UserError("names no base_model_name_or_path.", "Name the model under the adapters there.", where=where)
    # other kinds may read pickled files of their own; a megatron_config names a Python module to import
    if config.get("peft_type") != "LORA" or config.get("megatron_config") is not None:
        kind = str(config.get("peft_type")) if config.get("megatron_config") is None else "Megatron's LoRA"
        raise UserError(f"{path} holds adapters of the kind {kind}.", "LoRA adapters are what is loaded here.")
    if not (folder / "adapter_model.safetensors").is_file():  # peft would go on to adapter_model.bin, then to the hub
        raise _no_weights(path, folder, "adapter_model.safetensors")
    return base, config.get("revision")


def _weight_files(path: str, folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in _shard_names(index)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise UserError(
                f"{path} lacks {len(missing)} of its {len(files)} weight files, such as {missing[0]}.",
                "Fetch the model again; the download was not finished.",
            )
        return files
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    raise _no_weights(path, folder, "*.safetensors")


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


def _no_weights(path: str, folder: Path, wanted: str) -> UserError:
    if any(file.suffix in _PICKLED for file in folder.iterdir()):
        return UserError(
            f"{path} holds only pickled weights, which can run code when they are read.",
            "Convert them once: AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER) writes safetensors.",
        )
    return UserError(f"{path} holds no weights ({wanted}).", "Fetch the model again, weights included.")


_SAFETENSORS_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float32}


def _stored_dtype(files: list[Path]) -> torch.dtype:
    """The type that most stored numbers have; float32 when they are of none that is known here."""
    from safetensors import SafetensorError, safe_open

    counts: dict[torch.dtype, int] = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as weights:
                for key in weights.keys():  # noqa: SIM118 - not a mapping
                    entry = weights.get_slice(key)
                    dtype = _SAFETENSORS_DTYPES.get(entry.get_dtype(), torch.float32)
                    size = 1
                    for extent in entry.get_shape():
                        size *= extent
                    counts[dtype] = counts.get(dtype, 0) + size
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"cannot be read: {error}",
                "The weights are damaged or cut short; fetch the model again.",
                where=str(file),
                exit_code=exit_code_of(error),
            ) from error
    return max(counts, key=lambda dtype: counts[dtype]) if counts else torch.float32


# Building


def weights_dtype(recipe: ModelRecipe, source: ModelSource) -> torch.dtype:
    """The type that the weights are held in: float32 for full tuning, the checkpoint's own under adapters."""
    if recipe.weights_dtype != "auto":
        return DTYPES[recipe.weights_dtype]
    return source.stored_dtype if recipe.lora is not None else torch.float32


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Parameters of a model as the recipe trains it."""

    total: int
    trainable: int


@stage("counting the parameters")
def count_parameters(recipe: ModelRecipe, source: ModelSource) -> ParameterCounts:
    """Build the model and its adapters without memory for the weights, and count.

    Raises:
        UserError: the adapters of the recipe fit no layer of this model.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), own_code.faults_of(source.name, source.code):
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            source.config, trust_remote_code=bool(source.code)
        )
        if recipe.lora is not None:
            model = add_adapters(model, recipe.lora)
    parameters = list(model.parameters())
    return ParameterCounts(
        total=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
    )


Load = Callable[[ModelSource, torch.dtype, torch.device], nn.Module]
"""What reads a model in a type, onto a device."""

_CPU = torch.device("cpu")


@stage("loading the weights")
def load_model(source: ModelSource, dtype: torch.dtype | Literal["stored"], device: torch.device = _CPU) -> nn.Module:
    """Read the weights onto a device: a causal language model in `dtype`, every dropout off.

    Each tensor goes from its file to the device, so that a card's model never stands in the machine's memory. An
    adapter's folder gives its base model with the adapter in place.

    Raises:
        UserError: the weights do not fit the configuration.
    """
    from transformers import AutoModelForCausalLM

    if source.adapter_base is not None:
        from peft import PeftModel

        base = load_model(source.adapter_base, dtype, device)
        # read on the CPU, where peft would look for a device of its own, and copied to where their layers are
        adapted: nn.Module = PeftModel.from_pretrained(base, source.folder, torch_device="cpu")
        return adapted
    # The class itself where it is the model's own, as transformers does it, but for custom_generate/generate.py: that
    # would take the place of the decoding that every answer here is made by.
    auto: Any = source.model_class if source.code else AutoModelForCausalLM
    own = {"config": copy.deepcopy(source.config)} if source.code else {"trust_remote_code": False}
    with own_code.faults_of(source.name, source.code):
        try:
            loaded: Any = auto.from_pretrained(
                source.folder,
                dtype=source.stored_dtype if dtype == "stored" else dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **({} if device.type == "cpu" else {"device_map": {"": device}}),
                **own,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(
                f"the weights of {source.name} do not load: {str(error).splitlines()[0]}",
                "The folder is damaged, or its weights belong to another configuration.",
            ) from error
    model, report = loaded
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise UserError(
            f"{source.name} lacks {len(missing)} of its weights, such as {missing[0]}.",
            "They would be random numbers; fetch the model again, or mend its configuration.",
        )
    if not source.code:
        vars(model.config).pop("auto_map", None)  # what was not run shall not be asked for by the model that is saved
    switch_off_dropout(model)
    apply_soft_cap(model)
    checked: nn.Module = model
    return checked


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout of a model to 0: SimPO is run without, and a step must not depend on how it is cut up."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "activation_dropout", "resid_dropout", "hidden_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def apply_soft_cap(model: Any) -> None:
    """Have a model cap its attention scores where its configuration says so, in its own forward pass too.

    Under transformers before 5.21 Gemma 2 and VaultGemma compute their attention with torch's SDPA unless they are told
    otherwise, which knows no such cap and leaves it out.
    """
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    if capped and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")
