"""LoRA adapters through peft."""

from typing import Any

import torch
from torch import Tensor, nn

from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import LoraRecipe


def add_adapters(model: nn.Module, recipe: LoraRecipe) -> nn.Module:
    """Freeze the model and put adapters beside the layers that the recipe names.

    The adapters are float32 whatever the frozen weights are, and stand on the model's device. Their start is drawn on
    the CPU from torch's generator, so seed it first: a seed's start is then the same on any device.

    Raises:
        UserError: the targets match no layer.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]  # peft divides by the rank; whole or not is the same to it
        lora_dropout=recipe.dropout,
        target_modules=recipe.target_modules,
        use_dora=recipe.use_dora,
    )
    causal: Any = model
    try:
        adapted: nn.Module = get_peft_model(causal, config, autocast_adapter_dtype=True)
    except ValueError as error:
        linear = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise UserError(
            f"model.lora.target_modules ({recipe.target_modules}) matches no layer of this model.",
            f"Its linear layers are {', '.join(linear)}; all-linear takes all but the head.",
        ) from error
    return adapted


def leave_casts_to_autocast(model: nn.Module) -> None:
    """Keep LoRA layers from casting their inputs to the adapters' float32 where autocast casts them back at once.

    What a layer computes stays the same, and without autocast it casts as peft has it. DoRA layers are left alone: they
    take the norm of their weights in the type of their input.
    """
    from peft.tuners.lora import Linear

    for layer in model.modules():
        if isinstance(layer, Linear) and not layer.lora_variant:
            # on the layer, not as a state of it, so that copies and recomputed passes decide for themselves
            layer._cast_input_dtype = _cast_without_autocast  # type: ignore[method-assign,assignment]


def _cast_without_autocast(states: Tensor, dtype: torch.dtype) -> Tensor:
    return states if torch.is_autocast_enabled(states.device.type) else states.to(dtype)
