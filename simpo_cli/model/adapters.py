"""LoRA adapters through peft: new ones, and those of a folder, which training continues or merges."""

import copy
import difflib
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from simpo_cli.data.model_files import ADAPTER_CONFIG, read_json
from simpo_cli.errors import UserError
from simpo_cli.model import quantised
from simpo_cli.recipe.schema import LoraRecipe, ModelRecipe

AdapterUse = Literal["continue", "merge"]

TRAIN_WITHOUT_COPIES = "Train it again without modules_to_save, or on a model whose head is a weight of its own."
# What peft's LoRA layers compute by themselves, and what says nothing of the numbers; other keys have to be empty.
_KNOWN = (
    "r lora_alpha lora_dropout target_modules exclude_modules fan_in_fan_out bias use_rslora use_dora lora_bias "
    "modules_to_save trainable_token_indices init_lora_weights layers_to_transform layers_pattern rank_pattern "
    "alpha_pattern target_parameters ensure_weight_tying task_type peft_type peft_version base_model_name_or_path "
    "revision auto_mapping inference_mode megatron_core qalora_group_size eva_config runtime_config"
)
_MATCHES_NONE = re.compile("not found in the base model|No modules were targeted")
_KNOWN_STARTS = ("gaussian", "eva", "orthogonal", "pissa", "olora")  # the others change the base in ways of their own


@dataclass(frozen=True, slots=True)
class Adapter:
    """The LoRA adapter that a folder holds, by its adapter_config.json."""

    folder: Path  # where it is
    lora: LoraRecipe  # its rank (the largest, where layers differ), alpha, targets and kind, in the words of a recipe
    whole_parts: str  # what it holds beside low-rank matrices, in words; empty if nothing

    def __str__(self) -> str:
        lora, targets = self.lora, self.lora.target_modules
        kind = "DoRA" if lora.use_dora else "rsLoRA" if lora.use_rslora else "LoRA"
        on = targets if isinstance(targets, str) else ", ".join(targets)
        return f"{kind}, rank {lora.rank}, alpha {lora.alpha:g}, on {on}"


def read_adapter(path: str, folder: Path) -> Adapter:
    """What a folder's adapter_config.json says, if peft's LoRA layers compute all of it.

    Raises:
        UserError: it is another kind of adapter, or its numbers are none.
    """
    file = folder / ADAPTER_CONFIG
    config = read_json(file)
    # other kinds may read pickled files of their own; a megatron_config names a Python module to import
    if config.get("peft_type") != "LORA" or config.get("megatron_config") is not None:
        kind = str(config.get("peft_type")) if config.get("megatron_config") is None else "Megatron's LoRA"
        raise UserError(f"{path} holds adapters of the kind {kind}.", "LoRA adapters are what is loaded here.")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise UserError(
            f"{path} holds adapters for another task ({config['task_type']}).",
            "Name adapters of a causal language model (task_type CAUSAL_LM).",
        )
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start not in _KNOWN_STARTS:
        raise UserError(
            f"the adapters in {path} were started by {start} (init_lora_weights), which changes their base.",
            "Save them once as plain LoRA: save_pretrained has path_initial_model_for_weight_conversion for that.",
        )
    if foreign := [key for key, value in config.items() if value and key not in _KNOWN.split()]:
        raise UserError(
            f"the adapters in {path} are of a kind that is not loaded here: adapter_config.json sets {foreign[0]}.",
            "Plain LoRA, rsLoRA and DoRA adapters are.",
        )
    try:
        return Adapter(folder, _lora_of(config), _whole_parts(config))
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"does not describe adapters: {' '.join(str(error).split())}.",
            "The folder is damaged, or was edited; fetch or save the adapters again.",
            where=str(file),
        ) from error


def _lora_of(config: Mapping[str, Any]) -> LoraRecipe:
    ranks = [config.get("r", 8), *(config.get("rank_pattern") or {}).values()]
    alpha, targets = config.get("lora_alpha", 8), config.get("target_modules")
    if not all(type(rank) is int for rank in ranks) or type(alpha) not in (int, float):
        raise TypeError("r has to be a whole number, and lora_alpha a number")
    if not isinstance(targets, str):
        targets = sorted(targets or config.get("target_parameters") or ())
    return LoraRecipe(
        rank=max(ranks),
        alpha=alpha,
        target_modules=targets,
        use_rslora=bool(config.get("use_rslora")),
        use_dora=bool(config.get("use_dora")),
    )


def _whole_parts(config: Mapping[str, Any]) -> str:
    parts = []
    if modules := config.get("modules_to_save"):
        parts.append(f"trained copies of {', '.join(modules)} (modules_to_save)")
    if config.get("trainable_token_indices"):
        parts.append("trained tokens (trainable_token_indices)")
    if config.get("bias", "none") != "none":
        parts.append(f"trained biases (bias: {config['bias']})")
    return " and ".join(parts)


def use_of(recipe: ModelRecipe, adapter: Adapter | None) -> AdapterUse | None:
    """What becomes of the start model's adapter, if it has one: trained further under model.lora, or else merged."""
    if adapter is None:
        return None
    return recipe.adapter or ("merge" if recipe.lora is None else "continue")


def attach(base: nn.Module, adapter: Adapter, *, dropout: float | None = None) -> nn.Module:
    """Put a folder's adapter into the model that it was trained beside.

    Args:
        base: the model, perhaps on the meta device, where nothing is read into it.
        dropout: its dropout in the training that follows; None freezes it.

    Raises:
        UserError: the adapter does not fit the model, tensor by tensor.
    """
    quantised.import_before_peft()
    from peft import LoraConfig, PeftModelForCausalLM
    from safetensors import SafetensorError

    trained = dropout is not None
    try:
        config = LoraConfig.from_pretrained(str(adapter.folder))
        config.inference_mode = not trained
        if dropout is not None:
            config.lora_dropout = dropout
        if next(base.parameters()).is_meta:
            config.init_lora_weights = False  # some begin from the base's numbers
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*to a meta parameter", category=UserWarning)
            adapted: Any = PeftModelForCausalLM(base, config)
            # read on the CPU, where peft would look for a device of its own, and copied to where their layers are
            report = adapted.load_adapter(str(adapter.folder), "default", is_trainable=trained, torch_device="cpu")
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
        raise _does_not_fit(adapter, " ".join(str(error).split())[:400]) from error
    if report.missing_keys:
        raise _does_not_fit(adapter, f"it lacks {len(report.missing_keys)} tensors, such as {report.missing_keys[0]}")
    if report.unexpected_keys:
        extra = report.unexpected_keys
        raise _does_not_fit(adapter, f"the model has no place for {len(extra)} of its tensors, such as {extra[0]}")
    whole: nn.Module = adapted
    return whole


def _does_not_fit(adapter: Adapter, why: str) -> UserError:
    return UserError(
        f"the adapter {adapter.folder} does not fit the model under it: {why.rstrip('.')}.",
        "Name the model that it was trained beside as base_model_name_or_path in its adapter_config.json; where tokens "
        "were added for it, that is the model with these tokens: merge the two in peft, and name the merged folder.",
    )


def require_mergeable(adapted: nn.Module, adapter: Adapter) -> None:
    """Refuse to merge what the merged model would not keep, such as a change of a weight that serves in two places."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper, TrainableTokensWrapper

    model: Any = adapted
    causal = model.get_base_model()
    for layer in causal.modules():
        if isinstance(layer, LoraLayer) and any(layer.lora_bias.values()) and layer.get_base_layer().bias is None:
            raise UserError(
                f"the adapter {adapter.folder} has biases (lora_bias) for layers without one, so it cannot be merged.",
                "Continue it with model.lora={}",
                key="model.lora",
            )
    if not getattr(causal.config.get_text_config(), "tie_word_embeddings", False):
        return
    for part in (causal.get_input_embeddings(), causal.get_output_embeddings()):
        wrapped = isinstance(part, (BaseTunerLayer, AuxiliaryTrainingWrapper))
        if wrapped and not isinstance(part, TrainableTokensWrapper):
            raise UserError(
                f"the adapter {adapter.folder} changes the head or the embedding, which share their weights in this "
                "model, so it cannot be merged.",
                "Continue it with model.lora={}" if not adapter.whole_parts else TRAIN_WITHOUT_COPIES,
                key="model.lora",
            )


def merge(adapted: nn.Module, adapter: Adapter) -> nn.Module:
    """The model with the adapter as part of its weights, in their type; every weight can be trained.

    Raises:
        UserError: a merged weight is not finite.
    """
    require_mergeable(adapted, adapter)
    model: Any = adapted
    # not safe_merge, which rounds the change to the weights' type before it is added, and then the sum again
    merged: nn.Module = model.merge_and_unload()
    for name, parameter in merged.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise UserError(
                f"the adapter {adapter.folder} makes {name} infinite or NaN when it is merged.",
                "Its weights are damaged, or model.weights_dtype holds too few digits.",
                key="model.weights_dtype",
            )
        parameter.requires_grad_(True)
    return merged


def add_adapters(model: nn.Module, recipe: LoraRecipe, seed: int = 0) -> nn.Module:
    """Freeze the model and put adapters beside the layers that the recipe names.

    The adapters are float32 whatever the frozen weights are, and stand on the model's device.

    Args:
        seed: fixes their start, which is drawn on the CPU and so the same on any device; torch's generator is seeded.

    Raises:
        UserError: the targets match no layer, or cannot begin as the recipe says.
    """
    torch.manual_seed(seed)
    quantised.import_before_peft()
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]  # peft divides by the rank; whole or not is the same to it
        lora_dropout=recipe.dropout,
        target_modules=recipe.target_modules,
        use_rslora=recipe.use_rslora,
        use_dora=recipe.use_dora,
    )
    causal: Any = model
    linear = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
    try:
        adapted: Any = get_peft_model(causal, config, autocast_adapter_dtype=True)
    except ValueError as error:
        reason, targets = " ".join(str(error).split()), f"model.lora.target_modules ({recipe.target_modules})"
        if _MATCHES_NONE.search(reason):
            named = [recipe.target_modules] if isinstance(recipe.target_modules, str) else recipe.target_modules
            near = [one for name in named for one in difflib.get_close_matches(name, linear, n=2)]
            meant = f" Did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
            problem = f"{targets} matches no layer of this model."
            fix = f"Its linear layers are {', '.join(linear)}; all-linear takes all but the head.{meant}"
        else:
            problem = f"peft puts no adapters on {targets}: {reason}"
            taken = [name for name in linear if name not in reason and name != "lm_head"]
            fix = f"Name layers: model.lora.target_modules=[{','.join(taken)}]"
        raise UserError(problem, fix, key="model.lora.target_modules") from error
    if recipe.init == "pissa":
        _begin_in_base(adapted, recipe)
    whole: nn.Module = adapted
    return whole


@torch.no_grad()
def _begin_in_base(adapted: Any, recipe: LoraRecipe) -> None:
    """Move the main components of each adapted weight into its adapter (Meng, Wang and Zhang 2024, arXiv:2404.02948).

        W ~ U S V'   of the adapter's rank        A = (S / s)^1/2 V'        B = U (S / s)^1/2        W <- W - s B A

    with s the adapter's scale. A checkpoint holds A and B as they are trained, so what stays of W has to come out the
    same whatever the recipe's seed and the device: the decomposition is made on the CPU, of numbers drawn by a seed of
    its own. It is a randomised one, which takes seconds where the whole one takes an hour.
    """
    from peft.tuners.lora import LoraLayer

    _require_own_weights(adapted)
    torch.manual_seed(0)
    layers = {name: layer for name, layer in adapted.named_modules() if isinstance(layer, LoraLayer)}
    for name, layer in layers.items():
        base = layer.get_base_layer()
        if not isinstance(base, nn.Linear) or recipe.rank > min(base.weight.shape):
            place = name.removeprefix("base_model.model.")
            raise UserError(
                f"model.lora.init is pissa, and {place} has no {recipe.rank} components to give.",
                "Lower model.lora.rank, or name linear layers in model.lora.target_modules.",
                key="model.lora.init",
            )
    adapted.pissa_start = {}
    for name, layer in layers.items():
        weight: Tensor = layer.get_base_layer().get_parameter("weight")
        scale = layer.scaling["default"]
        if weight.is_meta:
            continue
        left, values, right = torch.svd_lowrank(weight.float().cpu(), recipe.rank, niter=16)
        root = (values / scale).sqrt()
        start = {"lora_A": root[:, None] * right.T, "lora_B": left * root}
        weight -= (scale * start["lora_B"] @ start["lora_A"]).to(weight)
        for kind, numbers in start.items():
            getattr(layer, kind)["default"].weight.copy_(numbers)
            adapted.pissa_start[f"{name}.{kind}.default.weight"] = numbers


def _require_own_weights(adapted: Any) -> None:
    """Refuse adapters that took components out of a weight which serves in two places, and changed it in both."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    causal = adapted.get_base_model()
    ends = (causal.get_input_embeddings(), causal.get_output_embeddings())
    if causal.config.get_text_config().tie_word_embeddings and any(isinstance(end, BaseTunerLayer) for end in ends):
        raise UserError(
            "model.lora.init is pissa, and the head shares its weights with the embedding in this model.",
            "Take lm_head and the embedding out of model.lora.target_modules, or leave model.lora.init out.",
            key="model.lora.init",
        )


def save_adapters(adapted: nn.Module, folder: Path) -> None:
    """Write adapters as peft keeps them, beside the model as it was before they were made.

    Those of PiSSA have taken their start A0, B0 out of the weights. Beside the whole weights they are an adapter of
    twice the rank: B A - B0 A0, as matrices [B, -B0] [A; A0].
    """
    model: Any = adapted
    start: dict[str, Tensor] | None = getattr(model, "pissa_start", None)
    if start is None:
        model.save_pretrained(folder, safe_serialization=True)
        return
    config = model.peft_config["default"]
    whole = {}
    parameters = dict(model.named_parameters())
    for name, before in start.items():
        is_input, now = ".lora_A." in name, parameters[name].detach().cpu()
        whole[name] = torch.cat([now, before if is_input else -before], dim=0 if is_input else 1)
    more = math.sqrt(2) if config.use_rslora else 2
    plain = copy.copy(config)
    plain.r, plain.lora_alpha, plain.init_lora_weights = 2 * config.r, more * config.lora_alpha, True
    model.peft_config["default"] = plain
    try:
        model.save_pretrained(folder, safe_serialization=True, state_dict=whole)
    finally:
        model.peft_config["default"] = config


def switch_adapter(model: nn.Module, *, on: bool) -> None:
    """Have a model with a LoRA adapter in place compute with it, or as if it had none."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.enable_adapters(on)


def leave_casts_to_autocast(model: nn.Module) -> None:
    """Keep LoRA layers from casting their inputs to the adapters' float32 where autocast casts them back at once.

    What a layer computes stays the same, and without autocast it casts as peft has it. DoRA layers are left alone: they
    take the norm of their weights in the type of their input.
    """
    from peft.tuners.lora import Linear

    kinds = (Linear, *quantised.adapted_layers())
    for layer in model.modules():
        if isinstance(layer, kinds) and not layer.lora_variant:
            # on the layer, not as a state of it, so that copies and recomputed passes decide for themselves
            layer._cast_input_dtype = _cast_without_autocast  # type: ignore[assignment]


def _cast_without_autocast(states: Tensor, dtype: torch.dtype) -> Tensor:
    return states if torch.is_autocast_enabled(states.device.type) else states.to(dtype)
