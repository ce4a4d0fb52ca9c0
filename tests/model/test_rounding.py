"""What narrow numbers take away: updates that lead back to the same weight, and changes that a save loses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

from simpo_cli.model.load import load_model
from simpo_cli.model.rounding import WeightSample, measure_rounding, sampled, step_counting_lost
from simpo_cli.model.source import find_model
from tests.tiny import save_tiny_model


@pytest.fixture
def start(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "start", dtype=torch.bfloat16)


def test_small_changes_are_lost_in_a_narrow_save_and_the_number_says_so(start: Path) -> None:
    """Weights around 0.3 have bf16 steps of about 2e-3: changes of 1e-5 nearly all fall back, changes of 0.1 do not."""
    source = find_model(str(start))
    for size, kept in ((1e-5, (0.0, 0.2)), (0.1, (0.95, 1.05))):
        model = load_model(source, torch.float32)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += size * torch.randn_like(parameter).sign()
        rounding = measure_rounding(model, source, torch.bfloat16)
        assert kept[0] <= rounding.kept_share <= kept[1]
        assert (rounding.rounded_back_share > 0.9) == (size < 1e-3)


def test_an_unchanged_model_has_lost_nothing(start: Path) -> None:
    source = find_model(str(start))
    rounding = measure_rounding(load_model(source, torch.float32), source, torch.bfloat16)
    assert (rounding.kept_share, rounding.rounded_back_share) == (1.0, 0.0)


def _weights(dtype: torch.dtype, *sizes: int) -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(3)
    return {str(at): nn.Parameter(0.02 * torch.randn(size, generator=draw).to(dtype)) for at, size in enumerate(sizes)}


def _optimizer(weights: dict[str, nn.Parameter], rate: float) -> optim.Optimizer:
    optimizer = optim.AdamW(weights.values(), lr=rate, weight_decay=0.0)
    draw = torch.Generator().manual_seed(4)
    for weight in weights.values():
        weight.grad = torch.randn(weight.shape, generator=draw).to(weight.dtype)
    return optimizer


@pytest.mark.parametrize(("rate", "low", "high"), [(1e-6, 0.9, 1.0), (1e-4, 0.05, 0.3), (1e-2, 0.0, 0.02)])
def test_the_share_of_lost_updates_is_that_of_all_weights(rate: float, low: float, high: float) -> None:
    weights = _weights(torch.bfloat16, 300, 4096)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    share = step_counting_lost(_optimizer(weights, rate), weights)
    same = sum(int((weight == before[name]).sum()) for name, weight in weights.items())
    assert share == pytest.approx(same / 4396)
    assert low <= share <= high


def test_float32_loses_nothing_and_a_weight_without_a_gradient_has_no_update() -> None:
    weights = _weights(torch.float32, 500)
    optimizer = _optimizer(weights, 1e-6)
    gradient: Any = weights["0"].grad
    gradient[100:] = 0
    assert step_counting_lost(optimizer, weights) == 0.0


def test_a_large_tensor_is_sampled_evenly() -> None:
    tensor = torch.arange(10_001).reshape(1, -1)
    picked = sampled(tensor)
    assert picked.tolist() == list(range(0, 10_001, 3))
    picked += 1
    assert tensor[0, 0] == 0  # a copy


def test_what_a_save_keeps_is_estimated_from_the_sample() -> None:
    weights = _weights(torch.float32, 5_000, 60_000)
    with torch.no_grad():
        for weight in weights.values():
            weight.copy_(weight.to(torch.bfloat16))  # a start model that is stored so
    sample = WeightSample.of(weights)
    start = torch.cat([weight.detach().clone() for weight in weights.values()])
    assert sample.rounding(torch.bfloat16).kept_share == 1.0  # nothing has changed yet
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in weights.values():
            weight += 4e-5 * torch.randn(weight.shape, generator=draw)
    now = torch.cat([weight.detach() for weight in weights.values()])
    change, saved = now - start, now.to(torch.bfloat16).float() - start
    rounding = sample.rounding(torch.bfloat16)
    assert rounding.kept_share == pytest.approx(float(change @ saved / (change @ change)), abs=0.03)
    assert rounding.rounded_back_share == pytest.approx(float((saved == 0).float().mean()), abs=0.02)
    assert 0.2 < rounding.rounded_back_share < 0.9
    assert sample.rounding(torch.float32).kept_share == pytest.approx(1.0)
