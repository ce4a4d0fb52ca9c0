"""Where a model comes from, and what is known of it without its weights; what can be refused is refused here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from simpo_cli.builtin import guide_model_dir
from simpo_cli.data import hub
from simpo_cli.data.model_files import ADAPTER_CONFIG, Quantization, base_of_adapters, require_regular_files
from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.store import highest_ids_of
from simpo_cli.data.tokenizer import require_model_name
from simpo_cli.errors import UserError
from simpo_cli.model import adapters, remote_code
from simpo_cli.model.adapters import Adapter, use_of
from simpo_cli.model.folder import no_weights, read_configuration, stored_weights
from simpo_cli.recipe.schema import LoraRecipe, ModelRecipe, Recipe
from simpo_cli.stages import stage
from simpo_cli.versions import require_extra

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
    quantization: Quantization | None = None  # how its linear layers are held in memory
    is_stored_quantised: bool = False  # whether the files hold them so, too

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


def start_model(recipe: ModelRecipe, *, fetch: bool = True, weights: bool = True) -> ModelSource:
    """The model that a recipe names, held as the recipe says; see `find_model`."""
    return find_model(recipe.path, recipe.revision, recipe.quantization, fetch=fetch, weights=weights)


def find_model(
    path: str,
    revision: str | None = None,
    quantization: Quantization | None = None,
    *,
    fetch: bool = True,
    weights: bool = True,
) -> ModelSource:
    """Locate a model and read its configuration; the weights are looked at, not loaded.

    Args:
        path: a folder, a hub id or `builtin:guide`.
        revision: branch, tag or commit of a hub id.
        quantization: how its linear layers are held in memory; one that is stored quantised stays as it is.
        fetch: whether a model of the hub may be downloaded; else it has to be on this machine already.
        weights: whether there have to be any; else the hub is asked for none, and config.json is believed.

    Raises:
        UserError: nothing is there, it is no causal language model, it needs remote code, its weights are missing,
            incomplete or pickled, or they are quantised and bitsandbytes is not installed.
    """
    return _found(path, revision, _Wanted(fetch, weights, quantization), (), "")


class _Wanted(NamedTuple):
    """What `find_model` is asked for."""

    fetch: bool
    weights: bool
    quantization: Quantization | None


def _found(path: str, revision: str | None, wanted: _Wanted, above: tuple[Path, ...], held_by: str) -> ModelSource:
    """The model at a path under the adapters `above`, one of whose adapter_config.json (`held_by`) names it."""
    folder, commit = locate_model(path, revision, fetch=wanted.fetch, weights=wanted.weights)
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
    kind = _kind_of_quantization(path, read.quantization, wanted)
    sizes: Mapping[str, int] = {}
    if not wanted.weights and not any(folder.glob("*.safetensors")):
        said = getattr(read.config.get_text_config(), "dtype", None)
        stored = next((dtype for dtype in DTYPE_NAMES if dtype == said), torch.float32)
    else:
        weights = stored_weights(path, folder, held_by, read.quantization)
        stored, sizes = weights.dtype, weights.sizes
        layers = getattr(read.config.get_text_config(), "num_hidden_layers", 0)
        if not read.code and layers > weights.num_layers:
            raise UserError(
                f"{path} lacks some of its weights: config.json says num_hidden_layers is {layers}, and the weight "
                f"files hold {weights.num_layers} layers.",
                "Fetch the model again, or mend its config.json.",
            )
    return ModelSource(
        path,
        folder,
        read.config,
        read.model_class,
        commit,
        stored,
        sizes=sizes,
        code=read.code,
        quantization=kind,
        is_stored_quantised=read.quantization is not None,
    )


def _kind_of_quantization(path: str, stored: Quantization | None, wanted: _Wanted) -> Quantization | None:
    """How a model's linear layers will be held."""
    if stored is not None and wanted.quantization not in (None, stored):
        raise UserError(
            f"model.quantization is {wanted.quantization}, and the weights of {path} are stored as {stored}.",
            "Leave model.quantization out, or name the unquantised model that it was made from.",
            key="model.quantization",
        )
    kind = stored or wanted.quantization
    if kind is not None and wanted.weights:
        require_extra("bitsandbytes", "quant", "a quantised model")
    return kind


def locate_model(
    path: str, revision: str | None, *, fetch: bool = True, weights: bool = True
) -> tuple[Path, str | None]:
    """A model's folder on this machine, and the commit of one of the hub; arguments and errors as `find_model`."""
    if path == "builtin:guide":
        return guide_model_dir(), None
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder, None
    require_model_name(path)
    patterns = [*_PATTERNS, *([_WEIGHTS] if weights else []), _CARD]
    patterns += [_CODE] if remote_code.is_trusted() else []
    with stage(f"fetching {path} from the hub"):
        local = hub.model_snapshot(path, revision, patterns, fetch=fetch)
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
    for key in ("rank", "alpha", "target_modules", "use_rslora", "use_dora", "init"):
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


def require_trainable(recipe: ModelRecipe, source: ModelSource) -> None:
    """Refuse what cannot be trained of narrow and quantised weights, however they came to be so."""
    kind, lora = source.quantization, recipe.lora
    if lora is not None and lora.init == "pissa" and weights_dtype(recipe, source) != torch.float32:
        raise UserError(
            f"model.lora.init is pissa, and the frozen weights are {DTYPE_NAMES[weights_dtype(recipe, source)]}: what "
            "the adapters leave of them would be rounded, and the saved adapter would not be what was trained.",
            "Set model.weights_dtype=fp32, or leave model.lora.init out.",
            key="model.lora.init",
        )
    if kind is None:
        return
    if lora is None:
        raise UserError(
            f"the weights of {source.name} are quantised ({kind}), and cannot be trained themselves.",
            "Add model.lora={}, which trains adapters beside them.",
            key="model.lora",
        )
    if recipe.compile is True:
        raise UserError(
            f"model.compile is true, and the weights of {source.name} are quantised ({kind}).",
            "Leave model.compile out: quantised layers are not compiled.",
            key="model.compile",
        )
    if source.adapter is not None and use_of(recipe, source.adapter) == "merge":
        raise UserError(
            f"the weights under the adapter {source.name} are quantised ({kind}), and nothing merges into these.",
            "Continue the adapter with model.adapter=continue, or merge it into the unquantised model first.",
            key="model.adapter",
        )


def weights_dtype(recipe: ModelRecipe, source: ModelSource) -> torch.dtype:
    """The type that the weights are held in: float32 for full tuning, the checkpoint's own under adapters."""
    if recipe.weights_dtype != "auto":
        return DTYPES[recipe.weights_dtype]
    return source.stored_dtype if recipe.lora is not None else torch.float32


def trained_dtype(recipe: ModelRecipe) -> torch.dtype:
    """The type of the weights that are trained: adapters are float32, whatever is below them."""
    return torch.float32 if recipe.lora is not None else DTYPES.get(recipe.weights_dtype, torch.float32)
