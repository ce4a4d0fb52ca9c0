"""AdamW: its moments before the first step are those that it would make at it, also on a card; its 8-bit step is that
of numpy; its rates are those of transformers."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import get_scheduler

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.load import ParameterCounts
from simpo_cli.model.moments import moments_size
from simpo_cli.model.quantised import bitsandbytes
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import TrainRecipe
from simpo_cli.train.optimizer import (
    learning_rate,
    make_optimizer,
    require_optimizer,
    saved_size,
    start_moments,
)
from simpo_cli.versions import install_command


class _Weights(nn.Module):
    """A matrix, one that is stored by columns, a scale, and a frozen one."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(4, 3, device=device, dtype=dtype))
        self.turned = nn.Parameter(torch.ones(3, 4, device=device, dtype=dtype).t())
        self.scale = nn.Parameter(torch.ones((), device=device, dtype=dtype))
        self.frozen = nn.Parameter(torch.ones(2, device=device, dtype=dtype), requires_grad=False)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.float32), ("cuda", torch.float32), ("cpu", torch.bfloat16)],  # pieces need numbers on a card
)
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
            made: list[Any] = [dict(optimizer.state[parameter]) for parameter in optimizer.param_groups[0]["params"]]
            optimizer.step()
            after = [optimizer.state[parameter] for parameter in optimizer.param_groups[0]["params"]]
            if before:
                assert all(
                    old[key] is new[key] or isinstance(new[key], int)
                    for old, new in zip(made, after, strict=True)
                    for key in new
                )
            kinds.append(
                [
                    {
                        key: (t.device, t.dtype, t.shape, t.stride())
                        for key, t in one.items()
                        if isinstance(t, torch.Tensor)
                    }
                    for one in after
                ]
            )
    assert kinds[0] == kinds[1]
    assert len(kinds[0]) == 3
    assert {kind[0].type for one in kinds[0] for kind in one.values()} == {device}
    assert {kind[1] for one in kinds[0] for kind in one.values()} == {torch.float32}  # whatever the weights are


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


# 8 bits


def _numbers(size: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))


class _Blockwise:
    """AdamW whose moments are codes, in numpy: the nearest of 256 values, times the largest of each 256 numbers."""

    def __init__(self, maps: tuple[Any, Any]) -> None:
        self.maps, self.scales = maps, [np.zeros(0), np.zeros(0)]
        self.codes: list[Any] = [None, None]

    def step(self, weight: Any, slope: Any, number: int, rate: float, decay: float) -> Any:
        held = [np.zeros_like(slope), np.zeros_like(slope)]
        if self.codes[0] is not None:
            held = [self.maps[i][self.codes[i]] * np.repeat(self.scales[i], 256)[: len(slope)] for i in (0, 1)]
        mean, square = 0.9 * held[0] + 0.1 * slope, 0.999 * held[1] + 0.001 * slope**2
        for i, moment in enumerate((mean, square)):
            blocks = np.split(moment, range(256, len(moment), 256))
            self.scales[i] = np.array([np.abs(block).max() for block in blocks])
            shares = np.concatenate([block / scale for block, scale in zip(blocks, self.scales[i], strict=True)])
            self.codes[i] = np.abs(shares[:, None] - self.maps[i][None, :]).argmin(1)
        weight = weight * (1 - rate * decay)
        return weight - rate * (mean / (1 - 0.9**number)) / (np.sqrt(square / (1 - 0.999**number)) + 1e-8)


def test_8_bit_steps_are_those_of_numpy() -> None:
    """Of bitsandbytes on a CPU, in three steps of a tensor whose last block is not whole.

    Its quantiser there finds most codes by a table: some are not the nearest, by at most a few of the least values.
    """
    pytest.importorskip("bitsandbytes")
    size, decay = 4096 + 100, 0.1
    weight = nn.Parameter(_numbers(size, 0))
    optimizer = make_optimizer(nn.ParameterList([weight]), TrainRecipe(optimizer="adamw_8bit", weight_decay=decay))
    start_moments(optimizer)
    [group], state = optimizer.param_groups, optimizer.state[weight]
    reference = _Blockwise((state["qmap1"].double().numpy(), state["qmap2"].double().numpy()))
    expected = weight.detach().double().numpy()
    for number in (1, 2, 3):
        group["lr"] = 1e-3 / number
        weight.grad = _numbers(size, number, 1e-3)
        expected = reference.step(expected, weight.grad.double().numpy(), number, group["lr"], decay)
        optimizer.step()
        assert state["step"] == number
        for i, moment in enumerate(("1", "2")):
            assert state[f"state{moment}"].dtype == torch.uint8
            np.testing.assert_allclose(state[f"absmax{moment}"].numpy(), reference.scales[i], rtol=1e-5)
            values, nearest = (
                reference.maps[i][codes] for codes in (state[f"state{moment}"].numpy(), reference.codes[i])
            )
            assert (values != nearest).mean() < 0.05
            np.testing.assert_allclose(values, nearest, rtol=0.25, atol=2e-5)
        reference.codes = [state[f"state{moment}"].numpy().astype(int) for moment in ("1", "2")]
        np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "dtype"), [("adamw", "F"), ("adamw_8bit", "F"), ("adamw", "B"), ("adamw_8bit", "B")])
def test_the_size_of_the_state_is_predicted(name: Any, dtype: str) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("torchao")
    weights_type = {"F": torch.float32, "B": torch.bfloat16}[dtype]
    sizes = (100_000, 4096, 4095, 256 * 40, 7)
    policy = nn.ParameterList([torch.zeros(size, dtype=weights_type) for size in sizes])
    optimizer = make_optimizer(policy, TrainRecipe(optimizer=name))
    start_moments(optimizer)
    counts = ParameterCounts(sum(sizes), sum(sizes), 0, 0, trained_sizes=sizes)
    predicted = moments_size(name, counts, weights_type.itemsize)
    held = saved_size(policy, optimizer) - 2048 * len(sizes) - sum(sizes) * weights_type.itemsize
    assert held - 4 * len(sizes) <= predicted <= held  # torch's counts its steps in tensors
    if name == "adamw_8bit":
        in_8_bits = sum(sizes) - 4102 - (100_000 if dtype == "B" else 0)  # torchao has whole blocks only
        assert predicted / (2 * in_8_bits + 8 * (sum(sizes) - in_8_bits)) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("settings", "package", "problem"),
    [
        (["train.optimizer=adamw_8bit"], "bitsandbytes", "train.optimizer is adamw_8bit, which needs bitsandbytes"),
        (["train.optimizer=adamw_8bit", "model.lora={}"], "bitsandbytes", "which needs bitsandbytes"),
        (["train.optimizer=adamw_8bit", "model.weights_dtype=bf16"], "torchao", "which needs torchao"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_extra(
    settings: list[str], package: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    bitsandbytes.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=problem) as caught:
        require_optimizer(compose("demo", settings).recipe, torch.device("cpu"))
    assert install_command("quant") in caught.value.fix
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    require_optimizer(compose("demo", []).recipe, torch.device("cpu"))


def test_pages_are_for_cards() -> None:
    with pytest.raises(UserError, match="pages move between a CUDA card and the host, and this is a cpu") as caught:
        require_optimizer(compose("demo", ["train.optimizer=paged_adamw_8bit"]).recipe, torch.device("cpu"))
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.key == "train.optimizer"
