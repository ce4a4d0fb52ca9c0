"""Building and loading a causal language model; see `source` for finding it."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from simpo_cli.data.model_files import read_json
from simpo_cli.errors import UserError
from simpo_cli.model import adapters, quantised, remote_code
from simpo_cli.model.adapters import use_of
from simpo_cli.model.folder import LAYER, unbuildable
from simpo_cli.model.source import ModelSource
from simpo_cli.model.widened import widen_products
from simpo_cli.recipe.schema import ModelRecipe
from simpo_cli.stages import stage


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Parameters of a model as the recipe trains it."""

    total: int
    trainable: int
    largest_layer: int  # in one layer of the decoder, of those that devices may divide: all but adapters
    outside_layers: int  # of the same, in embedding, head and last norm
    linear: int = 0  # in weights of linear layers, which can be quantised: of all but the head and adapters
    linear_rows: int = 0  # rows of these weights
    largest_linear: int = 0  # in the largest of them
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
        linear = [weight.shape for weight in _linear_weights(model) if weight not in adapters]
        return cls(
            total=sum(parameter.numel() for parameter in parameters),
            trainable=sum(parameter.numel() for parameter in trained),
            largest_layer=max(layers, default=0),
            outside_layers=divided(model) - sum(layers),
            linear=sum(shape.numel() for shape in linear),
            linear_rows=sum(shape[0] for shape in linear),
            largest_linear=max((shape.numel() for shape in linear), default=0),
            trained_sizes=tuple(parameter.numel() for parameter in parameters if parameter.requires_grad),
        )


def _linear_weights(model: Any) -> list[Tensor]:
    """The weights of a model's linear layers, but for its head."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = causal.get_output_embeddings()
    inside = set() if head is None else set(head.modules())
    return [one.weight for one in model.modules() if isinstance(one, nn.Linear) and one not in inside]


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
    quantization = {}
    if source.quantization is not None:
        quantised.bitsandbytes()
        if not source.is_stored_quantised:
            quantization = {"quantization_config": quantised.settings_of(source.quantization)}
    with remote_code.faults_of(source.name, source.code):
        try:
            loaded: Any = auto.from_pretrained(
                source.folder,
                dtype=source.stored_dtype if dtype == "stored" else dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **({} if device.type == "cpu" and source.quantization is None else {"device_map": {"": device}}),
                **quantization,
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
    quantised.use_own_products(model)
    widen_products(model)
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
