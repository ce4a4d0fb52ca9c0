"""Loading a model that no device holds whole: an outline without numbers on every rank, which the first one fills.

The first rank reads the stored tensors one by one as they are wanted. Where they are not what the model holds, because
transformers converts them or an adapter is merged into them, it builds the model in the memory of its host instead.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import GenerationConfig

from simpo_cli.data.pair import EncodedPair
from simpo_cli.distributed import ranks
from simpo_cli.distributed.sharded import fill, full, reshard, shard
from simpo_cli.model import adapters
from simpo_cli.model.adapters import use_of
from simpo_cli.model.folder import weight_files
from simpo_cli.model.load import apply_soft_cap, empty_model, load_merged, switch_off_dropout
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy
from simpo_cli.model.self_check import first_layers
from simpo_cli.model.source import ModelSource
from simpo_cli.recipe.schema import ModelRecipe

Read = Callable[[str], Tensor]
"""Gives the tensor of a parameter of the policy, by its name."""


def outline(recipe: ModelRecipe, source: ModelSource, dtype: torch.dtype, seed: int) -> nn.Module:
    """The model that training starts from, its adapters in place and every other parameter without numbers.

    Args:
        recipe: with what the start model's adapter decides.
        seed: of new adapters, which begin with the numbers that they have in one process.
    """
    with init_empty_weights(include_buffers=False):
        model: Any = empty_model(source.whole, dtype)
    model.tie_weights()  # each use of a tensor got one of its own there
    if (source.whole.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(source.whole.folder)
    switch_off_dropout(model)
    apply_soft_cap(model)
    if recipe.lora is None:
        plain: nn.Module = model
        return plain
    continued = use_of(recipe, source.adapter) == "continue"
    # one number seen as many: peft makes its layers beside it as beside any other weight
    _replace(model, {p: torch.zeros((), dtype=p.dtype).expand(p.shape) for p in model.parameters()})
    if continued and source.adapter is not None:
        adapted = adapters.attach(model, source.adapter, dropout=recipe.lora.dropout)
    else:
        adapted = adapters.add_adapters(model, recipe.lora, seed)
    frozen = [parameter for parameter in adapted.parameters() if not parameter.requires_grad]
    _replace(adapted, {p: torch.empty(p.shape, dtype=p.dtype, device="meta") for p in frozen})
    return adapted


def _replace(model: nn.Module, tensors: Mapping[nn.Parameter, Tensor]) -> None:
    """Give parameters other tensors; tied ones stay tied."""
    new = {old: nn.Parameter(tensor, requires_grad=old.requires_grad) for old, tensor in tensors.items()}
    for owner in model.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if parameter in new:
                setattr(owner, name, new[parameter])


def reader(
    recipe: ModelRecipe, source: ModelSource, dtype: torch.dtype, policy: Policy
) -> tuple[Read, nn.Module | None]:
    """What reads the tensors of an outline, and the model that it had to build for that; for the first rank.

    Args:
        policy: of the outline.
    """
    from safetensors import safe_open

    base = source if use_of(recipe, source.adapter) != "continue" else source.adapter_base
    assert base is not None
    wanted = [stored_name(name) for name, parameter in policy.named_parameters() if parameter.is_meta]
    if base.adapter is not None or not _is_as_stored(base, wanted):
        model = load_merged(base, dtype)
        held = dict(model.named_parameters())
        return (lambda name: held[stored_name(name)].detach()), model
    places = {}
    for file in weight_files(base.name, base.folder):
        opened: Any = safe_open(file, framework="pt")  # stays open, and maps the file into memory
        places.update(dict.fromkeys(opened.keys(), opened))

    def read(name: str) -> Tensor:
        tensor: Tensor = places[stored_name(name)].get_tensor(stored_name(name))
        return tensor.to(dtype)

    return read, None


def _is_as_stored(source: ModelSource, wanted: list[str]) -> bool:
    """Whether the stored tensors are the model's parameters, by name and number for number."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    converted = get_checkpoint_conversion_mapping(str(source.config.model_type)) is not None  # type: ignore[no-untyped-call]
    return not converted and not source.code and all(name in source.sizes for name in wanted)


def stored_name(name: str) -> str:
    """The name under which a parameter of the policy is stored: without the policy's and peft's own parts."""
    return name.removeprefix("model.").removeprefix("base_model.model.").replace(".base_layer.", ".")


def filled_first_layers(policy: Policy, read: Read, device: torch.device) -> Policy:
    """The first layers of an outline in float32, with their numbers and on a device, for the self-check."""
    checked = first_layers(policy)
    numbers = {p: read(name).float() for name, p in checked.named_parameters() if p.is_meta}
    _replace(checked, numbers)
    return checked.to(device)


def distribute(policy: Policy, read: Read, device: torch.device, pair: EncodedPair, *, offload: bool) -> None:
    """Shard an outline over all ranks, and fill it from the first one.

    Args:
        read: of the first rank; others do not call it.
        pair: goes through the policy once: FSDP2 takes the module that is called first for the one that holds all.
    """
    whole = [parameter for parameter in policy.parameters() if not parameter.is_meta]  # adapters
    shard(policy, list(policy.layers), device=device, whole=whole, offload=offload)
    fill(policy, read, device, offload=offload)
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    for owner in policy.modules():
        for name, buffer in list(owner.named_buffers(recurse=False)):
            setattr(owner, name, buffer.to(device))
    with torch.no_grad():
        policy(pack([pair], device))
    reshard(policy)


def whole_model(policy: Policy, source: ModelSource, dtype: torch.dtype) -> nn.Module:
    """A sharded model in one piece, in the memory of the first rank's host; on the others without numbers.

    Args:
        policy: without adapters.
        source: the start model.
    """
    model = outline(ModelRecipe(path=source.name), source, dtype, seed=0)
    places = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
    numbers = {}
    for name, parameter in policy.named_parameters():  # one gathered tensor at a time
        whole = full(parameter)
        if ranks.is_first():
            numbers[places[name]] = whole.to("cpu", dtype)
    _replace(model, numbers)
    return model


def unread(name: str) -> Tensor:
    """For ranks that read nothing."""
    raise AssertionError(f"rank {ranks.rank()} was to read {name}")
