"""AdamW: its moments before the first step are those that it would make at it, also on a card; its rates are those of
transformers."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import get_scheduler

from simpo_cli.recipe.schema import TrainRecipe
from simpo_cli.train.optimizer import learning_rate, make_optimizer, start_moments


class _Weights(nn.Module):
    """A matrix, one that is stored by columns, a scale, and a frozen one."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(4, 3, device=device, dtype=dtype))
        self.turned = nn.Parameter(torch.ones(3, 4, device=device, dtype=dtype).t())
        self.scale = nn.Parameter(torch.ones((), device=device, dtype=dtype))
        self.frozen = nn.Parameter(torch.ones(2, device=device, dtype=dtype), requires_grad=False)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_moments_are_those_of_the_first_step(device: str, dtype: torch.dtype) -> None:
    with FakeTensorMode():  # tensors that know their device and have no numbers
        kinds = []
        for before in (True, False):
            weights = _Weights(device, dtype)
            optimizer = make_optimizer(weights, TrainRecipe())
            if before:
                start_moments(optimizer)
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad = torch.ones_like(parameter)
            made = [dict(optimizer.state[parameter]) for parameter in optimizer.param_groups[0]["params"]]
            optimizer.step()
            after = [optimizer.state[parameter] for parameter in optimizer.param_groups[0]["params"]]
            if before:
                assert all(old[key] is new[key] for old, new in zip(made, after, strict=True) for key in new)
            kinds.append([{key: (t.device, t.dtype, t.shape, t.stride()) for key, t in one.items()} for one in after])
    assert kinds[0] == kinds[1]
    assert len(kinds[0]) == 3
    assert {kind[0].type for one in kinds[0] for kind in one.values()} == {device}


_NAMES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def _recipe(kind: Any, rate: float, warmup: float) -> TrainRecipe:
    return TrainRecipe(lr_scheduler=kind, learning_rate=rate, warmup_ratio=warmup)


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(sorted(_NAMES)), steps=st.integers(1, 60), ratio=st.sampled_from([0.0, 0.03, 0.1, 0.5]))
def test_every_rate_is_that_of_transformers(kind: str, steps: int, ratio: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
    warmup = -(-steps * ratio // 1)  # rounded up
    scheduler = get_scheduler(_NAMES[kind], optimizer, num_warmup_steps=int(warmup), num_training_steps=steps)
    for step in range(steps):
        expected = optimizer.param_groups[0]["lr"]
        got = learning_rate(step, steps, _recipe(kind, 3e-4, ratio))
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-15)
        optimizer.step()
        scheduler.step()


def test_the_first_update_moves_nothing_when_there_is_warm_up() -> None:
    assert learning_rate(0, 62, _recipe("cosine", 1.0, 0.1)) == 0.0
    assert learning_rate(7, 62, _recipe("cosine", 1.0, 0.1)) == 1.0
    assert learning_rate(0, 62, _recipe("cosine", 1.0, 0.0)) == 1.0


def test_the_optimizer_decays_weights_as_the_recipe_says() -> None:
    optimizer = make_optimizer(_Weights("cpu", torch.float32), TrainRecipe(weight_decay=0.25))
    assert optimizer.param_groups[0]["weight_decay"] == 0.25
