"""Finding, checking and loading a causal language model; what can be known without the weights is checked first."""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from simpo_cli.builtin import guide_model_dir
from simpo_cli.data import hub
from simpo_cli.data.model_files import ADAPTER_CONFIG, base_of_adapters, read_json, require_regular_files
from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.store import highest_ids_of
from simpo_cli.data.tokenizer import require_model_name
from simpo_cli.errors import UserError
from simpo_cli.model import adapters, remote_code
from simpo_cli.model.adapters import Adapter, use_of
from simpo_cli.model.folder import LAYER, no_weights, read_configuration, stored_weights, unbuildable
from simpo_cli.recipe.schema import LoraRecipe, ModelRecipe, Recipe
from simpo_cli.stages import stage

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES.values()}

_PATTERNS = ("*.json", "*.jinja", "*.model", "*.txt", "adapter_model.safetensors")
_WEIGHTS = "*.safetensors"
_CARD = "README.md"  # which states the licence
_CODE = "*.py"
_MERGE = "this one becomes part of the weights first."


@dataclass(frozen=True)
class ModelSource:
    """A model before its weights are read; sizes and code of an adapter are those of its base."""

    name: str  # as the recipe has it
    folder: Path
    config: Any
    model_class: type  # what computes it, a class of transformers or of the model's remote code
    revision: str | None  # the commit that a hub id resolved to
    stored_dtype: torch.dtype  # of the weights on disk
    sizes: Mapping[str, int] = field(default_factory=dict)  # how many numbers each stored tensor holds
    adapter: Adapter | None = None  # what the folder holds, when that is a LoRA adapter
    adapter_base: "ModelSource | None" = None  # the model under it
    code: Mapping[str, str] = field(default_factory=dict)  # files of remote code that are run, each with its sha256

    @property
    def text_config(self) -> Any:
        return self.config.get_text_config()

    @property
    def max_length(self) -> int | None:
        """Most positions that the model knows, or None when its configuration does not say."""
        return getattr(self.text_config, "max_position_embeddings", None)

    @property
    def whole(self) -> "ModelSource":
        """The model under all adapters."""
        return self if self.adapter_base is None else self.adapter_base.whole


def find_model(path: str, revision: str | None = None, *, fetch: bool = True, weights: bool = True) -> ModelSource:
    """Locate a model and read its configuration; the weights are looked at, not loaded.

    Args:
        path: a folder, a hub id or `builtin:guide`.
        revision: branch, tag or commit of a hub id.
        fetch: whether a model of the hub may be downloaded; else it has to be on this machine already.
        weights: whether there have to be any; else the hub is asked for none, and config.json is believed.

    Raises:
        UserError: nothing is there, it is no causal language model, it needs remote code, or its weights are missing,
            incomplete or pickled.
    """
    return _found(path, revision, _Wanted(fetch, weights), (), "")


class _Wanted(NamedTuple):
    """What `find_model` is asked for."""

    fetch: bool
    weights: bool


def _found(path: str, revision: str | None, wanted: _Wanted, above: tuple[Path, ...], held_by: str) -> ModelSource:
    """The model at a path under the adapters `above`, one of whose adapter_config.json (`held_by`) names it."""
    folder, commit = _locate(path, revision, wanted)
    if (folder / ADAPTER_CONFIG).is_file():
        require_regular_files(folder)
        if folder.resolve() in above:
            raise UserError(
                f"the adapters in {path} are adapters of themselves.",
                "Mend base_model_name_or_path in adapter_config.json.",
            )
        adapter = adapters.read_adapter(path, folder)
        # without it peft would go on to adapter_model.bin, then to the hub
        if not (folder / "adapter_model.safetensors").is_file():
            raise no_weights(path, folder, "adapter_model.safetensors")
        under = base_of_adapters(folder)
        assert under is not None, "the folder has an adapter_config.json"
        base = _found(*under, wanted, (*above, folder.resolve()), str(folder / ADAPTER_CONFIG))
        return replace(base, name=path, folder=folder, revision=commit, adapter=adapter, adapter_base=base)
    read = read_configuration(path, folder, held_by)
    if not wanted.weights and not any(folder.glob("*.safetensors")):
        said = getattr(read.config.get_text_config(), "dtype", None)
        stored = next((dtype for dtype in DTYPE_NAMES if dtype == said), torch.float32)
        return ModelSource(path, folder, read.config, read.model_class, commit, stored, code=read.code)
    weights = stored_weights(path, folder, held_by)
    layers = getattr(read.config.get_text_config(), "num_hidden_layers", 0)
    if not read.code and layers > weights.num_layers:
        raise UserError(
            f"{path} lacks some of its weights: config.json says num_hidden_layers is {layers}, and the weight files "
            f"hold {weights.num_layers} layers.",
            "Fetch the model again, or mend its config.json.",
        )
    return ModelSource(
        path, folder, read.config, read.model_class, commit, weights.dtype, sizes=weights.sizes, code=read.code
    )


def _locate(path: str, revision: str | None, wanted: _Wanted) -> tuple[Path, str | None]:
    if path == "builtin:guide":
        return guide_model_dir(), None
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder, None
    require_model_name(path)
    patterns = [*_PATTERNS, *([_WEIGHTS] if wanted.weights else []), _CARD]
    patterns += [_CODE] if remote_code.is_trusted() else []
    with stage(f"fetching {path} from the hub"):
        local = hub.model_snapshot(path, revision, patterns, fetch=wanted.fetch)
    return local, local.name  # a snapshot's folder is named by its commit


# What goes with it


def choose_adapter(recipe: ModelRecipe, source: ModelSource) -> ModelRecipe:
    """The recipe with what the start model's adapter decides: its rank, alpha, targets and kind, if it is continued.

    Values that a recipe leaves at their defaults give way. Others were written by somebody, and have to be the
    adapter's own. Dropout is no part of an adapter, and stays the recipe's.

    Raises:
        UserError: recipe and adapter do not go together.
    """
    adapter, under = source.adapter, source.adapter_base
    if adapter is None or under is None:
        if recipe.adapter is not None:
            raise UserError(
                f"model.adapter is {recipe.adapter}, and {recipe.path} holds no adapter.",
                "Leave model.adapter out, or name an adapter's folder as model.path.",
                key="model.adapter",
            )
        return recipe
    use = use_of(recipe, adapter)
    if recipe.lora is None or use == "merge":
        return replace(recipe, adapter=use)
    is_nested = under.adapter is not None
    if is_nested or adapter.whole_parts:
        why = "lies on another adapter" if is_nested else f"also holds {adapter.whole_parts}"
        is_tied = getattr(source.text_config, "tie_word_embeddings", False)
        whole_copies = is_tied and "modules_to_save" in adapter.whole_parts
        fix = adapters.TRAIN_WITHOUT_COPIES if whole_copies else f"Add model.adapter=merge: {_MERGE}"
        raise UserError(f"the adapter {recipe.path} {why}, and cannot be continued.", fix)
    usual = LoraRecipe()
    for key in ("rank", "alpha", "target_modules", "use_dora"):
        wanted, there = getattr(recipe.lora, key), getattr(adapter.lora, key)
        same = sorted(wanted) == there if isinstance(wanted, list) else wanted == there
        if not same and wanted != getattr(usual, key):
            raise UserError(
                f"model.lora.{key} is {wanted}, and the adapter {recipe.path}, which is continued, has {there}.",
                f"Leave model.lora.{key} out, or train a new adapter with model.adapter=merge: {_MERGE}",
                key=f"model.lora.{key}",
            )
    return replace(recipe, adapter=use, lora=replace(adapter.lora, dropout=recipe.lora.dropout))


def require_lengths(recipe: Recipe, source: ModelSource) -> None:
    """Refuse a length limit beyond the positions that the model knows."""
    if source.max_length is not None and recipe.data.max_length > source.max_length:
        raise UserError(
            f"data.max_length is {recipe.data.max_length}, and {source.name} knows {source.max_length} positions.",
            f"Set data.max_length={source.max_length} or less (and data.max_prompt_length below it).",
            key="data.max_length",
        )


def require_known_ids(pairs: Sequence[EncodedPair], source: ModelSource) -> None:
    """Refuse ids beyond the model's vocabulary, which would read past its embedding."""
    highest = int(source.text_config.vocab_size) - 1
    largest = highest_ids_of(pairs)
    if (largest > highest).any():
        first = int((largest > highest).argmax())
        raise UserError(
            f"the tokenizer gives id {largest[first]}, and the model's vocabulary ends at {highest}.",
            "Tokenizer and weights belong to different models; fetch both from one place.",
            where=pairs[first].where,
        )


# Building


def weights_dtype(recipe: ModelRecipe, source: ModelSource) -> torch.dtype:
    """The type that the weights are held in: float32 for full tuning, the checkpoint's own under adapters."""
    if recipe.weights_dtype != "auto":
        return DTYPES[recipe.weights_dtype]
    return source.stored_dtype if recipe.lora is not None else torch.float32


def trained_dtype(recipe: ModelRecipe) -> torch.dtype:
    """The type of the weights that are trained: adapters are float32, whatever is below them."""
    return torch.float32 if recipe.lora is not None else DTYPES.get(recipe.weights_dtype, torch.float32)


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Parameters of a model as the recipe trains it."""

    total: int
    trainable: int
    largest_layer: int  # in one layer of the decoder, of those that devices may divide: all but adapters
    outside_layers: int  # of the same, in embedding, head and last norm
    trained_sizes: tuple[int, ...] = ()  # of each trained tensor

    @classmethod
    def of(cls, model: nn.Module) -> "ParameterCounts":
        """Those of a model with its adapters in place; tied ones count once."""
        parameters = list(model.parameters())
        trained = {parameter for parameter in parameters if parameter.requires_grad}
        adapters = set() if len(trained) == len(parameters) else trained

        def divided(module: nn.Module) -> int:
            return sum(parameter.numel() for parameter in module.parameters() if parameter not in adapters)

        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        layers = [divided(layer) for layer in max(lists, key=divided, default=())]  # experts are lists within one
        return cls(
            total=sum(parameter.numel() for parameter in parameters),
            trainable=sum(parameter.numel() for parameter in trained),
            largest_layer=max(layers, default=0),
            outside_layers=divided(model) - sum(layers),
            trained_sizes=tuple(parameter.numel() for parameter in parameters if parameter.requires_grad),
        )


@stage("counting the parameters")
def count_parameters(recipe: ModelRecipe, source: ModelSource) -> ParameterCounts:
    """Build the model and its adapters without memory for the weights, and count.

    Raises:
        UserError: the model cannot be built of its configuration, or its weights or adapters do not fit it.
    """
    with torch.device("meta"):
        model = _empty(source, keeps_adapters=use_of(recipe, source.adapter) == "continue")
        if recipe.lora is not None and use_of(recipe, source.adapter) != "continue":
            model = adapters.add_adapters(model, recipe.lora)
    return ParameterCounts.of(model)


def require_buildable(source: ModelSource) -> None:
    """Build a model without memory for the weights, with the adapter of its folder in place.

    Raises:
        UserError: it cannot be built of its configuration, or weights or adapter do not fit it.
    """
    with torch.device("meta"):
        _empty(source, keeps_adapters=True)


def _empty(source: ModelSource, *, keeps_adapters: bool) -> nn.Module:
    """A model without numbers, with the adapter of its folder in place or, as far as shapes go, merged."""
    if source.adapter_base is not None and source.adapter is not None:
        adapted = adapters.attach(_empty(source.adapter_base, keeps_adapters=False), source.adapter, dropout=0.0)
        if keeps_adapters:
            return adapted
        adapters.require_mergeable(adapted, source.adapter)
        merged: Any = adapted
        plain: nn.Module = merged.unload()
        return plain.requires_grad_(True)
    return empty_model(source)


def empty_model(source: ModelSource, dtype: torch.dtype | None = None) -> nn.Module:
    """A model of its configuration, on the device of the context that this is called in.

    Args:
        source: a model without an adapter.
        dtype: of its parameters; float32 if not given.

    Raises:
        UserError: it cannot be built, or its weights do not fit it.
    """
    from transformers import AutoModelForCausalLM

    with remote_code.faults_of(source.name, source.code):
        try:
            model: nn.Module = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                source.config, trust_remote_code=bool(source.code), dtype=dtype or torch.float32
            )
        except Exception as error:  # whatever the arithmetic of a model makes of impossible sizes
            if source.code:
                raise
            raise unbuildable(source.name, read_json(source.folder / "config.json"), error) from error
    _require_all_layers(source, model)
    for name, parameter in model.named_parameters():
        if source.sizes.get(name, parameter.numel()) != parameter.numel():
            raise UserError(
                f"the config.json of {source.name} does not belong to its weights: by it {name} is of shape "
                f"{tuple(parameter.shape)}, and {source.sizes[name]:,} numbers are stored.",
                "Fetch the model again, or mend its config.json.",
            )
    return model


def _require_all_layers(source: ModelSource, model: Any) -> None:
    """Refuse a configuration with fewer layers than are stored: the others would be left out without a word."""
    known = {name[: found.start()] for name, _ in model.named_parameters() if (found := LAYER.search(name))}
    layers = int(getattr(source.text_config, "num_hidden_layers", 0))
    # layers that predict further tokens lie behind the others, and are left out on purpose
    layers += int(getattr(source.text_config, "num_nextn_predict_layers", 0) or 0)
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    for name in () if source.code else source.sizes:
        found = LAYER.search(name)
        is_left_out = found and name[: found.start()] in known and int(found[1]) >= layers
        if is_left_out and not any(re.search(pattern, name) for pattern in ignored):
            raise UserError(
                f"{source.name} holds more layers than its config.json says: num_hidden_layers is {layers}, and "
                f"there is {name}.",
                "Fetch the model again, or mend its config.json.",
            )


Load = Callable[[ModelSource, torch.dtype, torch.device], nn.Module]
"""What reads a model in a type, onto a device."""

_CPU = torch.device("cpu")


@stage("loading the weights")
def load_model(source: ModelSource, dtype: torch.dtype | Literal["stored"], device: torch.device = _CPU) -> nn.Module:
    """Read the weights onto a device: a causal language model in `dtype`, every dropout off.

    Each tensor goes from its file to the device, so that a card's model never stands in the machine's memory. An
    adapter's folder gives its base model with the adapter in place; what that base has of adapters is merged.

    Raises:
        UserError: the weights do not fit the configuration.
    """
    return _loaded(source, dtype, device, dropout=None)


def load_start(recipe: ModelRecipe, source: ModelSource, dtype: torch.dtype, device: torch.device = _CPU) -> nn.Module:
    """Read the weights that training starts from: those of `load_model`, where an adapter is continued or merged.

    New adapters are not made here. The recipe has what the adapter decides, see `choose_adapter`; adapters are float32.
    """
    if use_of(recipe, source.adapter) == "continue" and recipe.lora is not None:
        return _loaded(source, dtype, device, dropout=recipe.lora.dropout)
    return load_merged(source, dtype, device)


def load_merged(source: ModelSource, dtype: torch.dtype | Literal["stored"], device: torch.device = _CPU) -> nn.Module:
    """Read a model as `load_model` does, and make an adapter that its folder holds part of the weights."""
    model = _loaded(source, dtype, device, dropout=None)
    return model if source.adapter is None else adapters.merge(model, source.adapter)


def _loaded(
    source: ModelSource, dtype: torch.dtype | Literal["stored"], device: torch.device, dropout: float | None
) -> nn.Module:
    from transformers import AutoModelForCausalLM

    if source.adapter_base is not None and source.adapter is not None:
        return adapters.attach(load_merged(source.adapter_base, dtype, device), source.adapter, dropout=dropout)
    # The class itself where it is the model's own, as transformers does it, but for custom_generate/generate.py: that
    # would take the place of the decoding that every answer here is made by.
    auto: Any = source.model_class if source.code else AutoModelForCausalLM
    own = {"config": copy.deepcopy(source.config)} if source.code else {"trust_remote_code": False}
    with remote_code.faults_of(source.name, source.code):
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
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, OSError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
            if source.code and not isinstance(error, (RuntimeError, ValueError, OSError)):
                raise  # a fault of that code
            raise UserError(
                f"the weights of {source.name} do not load: {(str(error).splitlines() or [type(error).__name__])[0]}",
                "The folder is damaged, or its weights belong to another configuration.",
            ) from error
    model, report = loaded
    if missing := sorted(report.get("missing_keys", ())):
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
