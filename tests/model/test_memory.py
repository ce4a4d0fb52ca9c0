"""What a run needs, before the weights are read."""

import pytest
import torch

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.load import ParameterCounts
from simpo_cli.model.memory import (
    MemoryNeed,
    activation_bytes_per_token,
    choose_budget,
    require_memory,
    state_bytes,
)
from tests.tiny import tiny_config, tiny_model

CPU = torch.device("cpu")


def test_sixteen_bytes_for_a_trainable_float32_parameter() -> None:
    full = ParameterCounts(total=1000, trainable=1000)
    assert state_bytes(full, torch.float32, adapters=False) == 16_000
    adapted = ParameterCounts(total=1000, trainable=10)
    assert state_bytes(adapted, torch.bfloat16, adapters=True) == 10 * 16 + 990 * 2


def test_checkpointing_and_bf16_need_less() -> None:
    config = tiny_config(num_hidden_layers=12)
    plain = activation_bytes_per_token(config, compute=torch.float32, checkpointing=False, longest_row=50)
    assert activation_bytes_per_token(config, compute=torch.bfloat16, checkpointing=False, longest_row=50) < plain
    assert activation_bytes_per_token(config, compute=torch.float32, checkpointing=True, longest_row=50) < plain / 3


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2"])
def test_the_estimate_covers_what_a_backward_pass_really_keeps(model_type: str) -> None:
    """Tensors saved by a forward pass, counted through autograd's own hooks, against the estimate per token."""
    model = tiny_model(model_type, hidden_size=64, intermediate_size=128, num_hidden_layers=3).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}
    held: list[torch.Tensor] = []  # so that no storage is freed and its address used again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            held.append(tensor)
        return tensor

    rows, width = 4, 50
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model(input_ids=torch.randint(0, 400, (rows, width)), use_cache=False)
    estimate = activation_bytes_per_token(model.config, compute=torch.float32, checkpointing=False, longest_row=width)
    assert 0.4 * estimate < sum(sizes.values()) / (rows * width) <= estimate


def test_the_budget_fits_and_holds_the_longest_pair() -> None:
    need = MemoryNeed(state=1 << 30, per_token=1 << 20, available=4 << 30)
    budget = choose_budget(need, CPU, longest=100)
    assert 100 < budget <= 4096
    assert need.total(budget) <= need.available
    assert choose_budget(need, CPU, longest=9000) == 9000


def test_what_does_not_fit_names_only_remedies_that_are_left() -> None:
    need = MemoryNeed(state=8 << 30, per_token=1 << 20, available=4 << 30)
    with pytest.raises(UserError, match="does not fit in memory") as caught:
        require_memory(need, 1000, adapters=True, checkpointing=False)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert "lora" not in caught.value.fix
    assert "gradient_checkpointing" in caught.value.fix
