"""LoRA adapters through peft."""

from typing import Any

from torch import nn

from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import LoraRecipe


def add_adapters(model: nn.Module, recipe: LoraRecipe) -> nn.Module:
    """Freeze the model and put adapters beside the layers that the recipe names.

    The adapters are float32 whatever the frozen weights are. Their start is drawn from torch's generator, so seed it
    first.

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
