"""AdamW of narrow weights: against numpy, against torchao's own 8-bit step, and in what stochastic rounding keeps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simpo_cli.recipe.schema import TrainRecipe
from simpo_cli.train import narrow_adamw
from simpo_cli.train.narrow_adamw import NarrowAdamW, noise, round_to_bfloat16
from simpo_cli.train.optimizer import make_optimizer

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
CPU = torch.device("cpu")


def _numbers(size: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def _optimizer(weights: list[nn.Parameter], name: Any = "adamw", decay: float = 0.0, seed: int = 0) -> Any:
    policy = nn.ParameterList(weights)
    return make_optimizer(policy, TrainRecipe(optimizer=name, weight_decay=decay), seed)


def _steps(optimizer: Any, gradients: list[Tensor], rate: float) -> None:
    """A step of one weight with each gradient."""
    [group] = optimizer.param_groups
    for gradient in gradients:
        group["lr"] = rate
        group["params"][0].grad = gradient.to(group["params"][0].dtype)
        optimizer.step()


# Noise and rounding


def test_the_noise_is_the_hash_that_it_says_it_is() -> None:
    def of_one_place(key: int, place: int) -> int:
        mixed = (place ^ key) % 2**32
        mixed = ((mixed ^ mixed >> 16) * 0x7FEB352D) % 2**32
        mixed = ((mixed ^ mixed >> 15) * 0x846CA68B) % 2**32
        return (mixed ^ mixed >> 16) % 2**16

    for key in (0, 12345, -7, -(2**31)):
        for first in (0, 1000, 2**31 - 2, 2**32 + 5):
            expected = [of_one_place(key, (first + i) % 2**32) for i in range(6)]
            assert noise(key, first, 6, CPU).tolist() == expected


def test_noise_is_even_and_places_steps_and_tensors_have_their_own() -> None:
    count = 2**20
    one, *others = (
        noise(narrow_adamw._noise_key(*named), 0, count, CPU).double()
        for named in ((7, 1, 0), (7, 2, 0), (7, 1, 1), (8, 1, 0))
    )
    counts = torch.bincount((one / 256).long(), minlength=256).double()
    expected = count / 256
    assert float(((counts - expected) ** 2 / expected).sum()) < 350  # chi-square of 255 degrees: beyond it 1 in 30,000
    assert abs(float(one.mean()) - 32767.5) < 4 * 65536 / 12**0.5 / count**0.5
    for other in (*others, one.roll(1), one.roll(64)):
        assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 4.5 / count**0.5


def test_the_expected_weight_is_the_number_that_was_rounded() -> None:
    draws = 40_000
    for value in (0.02 + 1e-6, -0.02 - 3.3e-5, 1.0 + 2**-9, -1.0 - 2**-8 + 2**-15, 3.1e-41):
        number = torch.tensor(value, dtype=torch.float32)
        rounded = round_to_bfloat16(number.expand(draws), noise(5, 0, draws, CPU)).float()
        toward_0 = float((number.view(torch.int32) & -65536).view(torch.float32))
        away = float(((number.view(torch.int32) & -65536) + 65536).view(torch.float32))
        assert set(rounded.tolist()) == {toward_0, away}
        tolerance = 4 * abs(away - toward_0) / 2 / draws**0.5
        assert abs(float(rounded.double().mean()) - float(number.double())) < tolerance


def test_numbers_of_bfloat16_stay_and_what_is_not_finite_does() -> None:
    exact = _numbers(1000, 0).bfloat16().float()
    assert torch.equal(round_to_bfloat16(exact, torch.full((1000,), 65535, dtype=torch.int32)).float(), exact)
    bits = torch.tensor([0x7F800000, 0xFF800000 - 2**32, 0x7FFFFFFF, -1, 0x7FC00001], dtype=torch.int32)
    odd = round_to_bfloat16(bits.view(torch.float32), torch.full((5,), 65535, dtype=torch.int32)).float()
    assert odd[:2].tolist() == [float("inf"), float("-inf")]
    assert odd[2:].isnan().all()  # the noise would have carried the second and third over to 0


def test_tiny_updates_add_up_as_in_float32_and_to_the_nearest_none_is_left() -> None:
    """400 updates of 1e-6, each a hundredth of what lies between two weights around 0.02."""
    size, rate, steps = 20_000, 1e-6, 400
    start = _numbers(size, 1, 0.02).bfloat16()
    gradients = [torch.ones(size)] * steps
    stochastic, exact = nn.Parameter(start.clone()), nn.Parameter(start.float())
    _steps(_optimizer([stochastic]), gradients, rate)
    _steps(_optimizer([exact]), gradients, rate)
    nearest = start.clone()
    for _ in range(steps):
        nearest = (nearest.float() - rate).bfloat16()
    large = start.abs() > 1e-3  # half a step between weights is above the update here
    change, wanted = (stochastic - start).detach().float()[large], (exact - start).detach()[large]
    deviation = float(change.std()) / int(large.sum()) ** 0.5
    assert abs(float(change.mean() - wanted.mean())) < 4 * deviation
    assert float(wanted.mean()) == pytest.approx(-rate * steps, rel=0.01)
    assert deviation < 0.02 * rate * steps
    assert float((nearest != start)[large].float().mean()) == 0.0


# Steps


def _in_numpy(start: Tensor, gradients: list[Tensor], rate: float, decay: float) -> tuple[Any, Any, Any]:
    """Decoupled weight decay and Adam (Loshchilov and Hutter 2019, algorithm 2) in float64."""
    weight, mean, square = start.double().numpy().copy(), 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        slope = gradient.double().numpy()
        mean = BETA1 * mean + (1 - BETA1) * slope
        square = BETA2 * square + (1 - BETA2) * slope**2
        weight = weight * (1 - rate * decay)
        weight -= rate * (mean / (1 - BETA1**step)) / (np.sqrt(square / (1 - BETA2**step)) + EPSILON)
    return weight, mean, square


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_moments_are_those_of_float64_and_the_weight_is_a_neighbour(dtype: torch.dtype, monkeypatch: Any) -> None:
    monkeypatch.setattr(narrow_adamw, "_PIECE", 256)
    start, gradients = _numbers(1000, 0).to(dtype), [_numbers(1000, i, 1e-4).to(dtype) for i in range(1, 8)]
    weight = nn.Parameter(start.clone())
    optimizer = NarrowAdamW([weight], weight_decay=0.1, seed=0)
    _steps(optimizer, gradients, 1e-2)
    expected, mean, square = _in_numpy(start, gradients, 1e-2, 0.1)
    state = optimizer.state[weight]
    assert state["step"] == 7
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32
    np.testing.assert_allclose(state["exp_avg"].numpy(), mean, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(state["exp_avg_sq"].numpy(), square, rtol=1e-4)
    digits = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-22}[dtype]
    away = np.abs(weight.detach().double().numpy() - expected) / np.abs(expected).clip(0.1)
    assert away.max() < 8 * digits  # of seven steps, each rounded


def test_the_second_moment_falls_when_gradients_are_gone() -> None:
    """In bfloat16 it would stay where it is: 0.999 of a number rounds to the number."""
    weight = nn.Parameter(torch.ones(8).bfloat16())
    optimizer = _optimizer([weight])
    _steps(optimizer, [torch.ones(8), *[torch.zeros(8)] * 1000], 0.0)
    assert optimizer.state[weight]["exp_avg_sq"].tolist() == pytest.approx([1e-3 * BETA2**1000] * 8, rel=1e-3)
    stuck = torch.ones(1).bfloat16()
    assert stuck * BETA2 == stuck


def test_no_generator_is_drawn_from_and_equal_seeds_round_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    start, gradients = _numbers(5000, 2, 0.02).bfloat16(), [_numbers(5000, i) for i in range(3)]

    def trained(seed: int, cut: int) -> Tensor:
        monkeypatch.setattr(narrow_adamw, "_PIECE", cut)
        weight = nn.Parameter(start.clone())
        _steps(_optimizer([weight], seed=seed), gradients, 1e-5)
        return weight.detach()

    before = torch.get_rng_state()
    one = trained(3, 2**22)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(one, trained(3, 256))
    assert not torch.equal(one, trained(4, 2**22))


def test_weights_that_are_stored_by_columns_or_have_no_shape_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow_adamw, "_PIECE", 4)
    turned = nn.Parameter(torch.ones(3, 4).bfloat16().t())
    number, untouched = nn.Parameter(torch.tensor(1.0).bfloat16()), nn.Parameter(torch.ones(2).bfloat16())
    optimizer = _optimizer([turned, number, untouched])
    optimizer.param_groups[0]["lr"] = 0.5
    signs = torch.tensor([[1.0, -1.0, 1.0]] * 4)
    turned.grad, number.grad = signs.bfloat16(), torch.tensor(2.0).bfloat16()
    optimizer.step()
    assert torch.equal(turned.detach().float(), 1 - 0.5 * signs)
    assert number.item() == 0.5
    assert untouched.tolist() == [1.0, 1.0]


# 8 bits


def _torchao_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """torchao's own optimizer, not compiled."""
    adam = pytest.importorskip("torchao.optim.adam")
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    made: Callable[..., Any] = adam.AdamW8bit
    return made


def test_8_bit_moments_are_those_of_torchaos_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = _torchao_step(monkeypatch)
    monkeypatch.setattr(narrow_adamw, "_PIECE", 1024)
    start, gradients = _numbers(8192, 0).view(64, 128), [_numbers(8192, i, 1e-2).view(64, 128) for i in range(1, 6)]
    ours, other = nn.Parameter(start.bfloat16()), nn.Parameter(start.clone())
    optimizer = _optimizer([ours], "adamw_8bit", decay=0.1)
    peer = theirs([other], lr=torch.tensor(1e-3), weight_decay=0.1)
    for gradient in gradients:
        ours.grad, other.grad = gradient.bfloat16(), gradient.bfloat16().float()
        optimizer.param_groups[0]["lr"] = 1e-3
        optimizer.step()
        peer.step()
    for moment in ("exp_avg", "exp_avg_sq"):
        held, expected = optimizer.state[ours][moment], peer.state[other][moment]
        assert held.codes.dtype == torch.uint8
        assert torch.equal(held.qmap, expected.qmap)
        assert torch.allclose(held.scale, expected.scale, rtol=1e-5)
        # a number between two values of the map may go to either after another order of the same arithmetic
        assert (held.codes != expected.codes).float().mean() < 0.001
    moved, wanted = ours.detach().float() - start.bfloat16().float(), other.detach() - start
    assert float(moved.flatten() @ wanted.flatten() / (wanted.flatten() @ wanted.flatten())) == pytest.approx(
        1, abs=0.02
    )


def test_small_tensors_and_those_of_broken_blocks_keep_float32_moments() -> None:
    pytest.importorskip("torchao")
    weights = [nn.Parameter(torch.ones(size).bfloat16()) for size in (4096, 4095, 4097, 8192)]
    optimizer = _optimizer(weights, "adamw_8bit")
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    kinds = [type(optimizer.state[weight]["exp_avg"]).__name__ for weight in weights]
    assert kinds == ["OptimState8bit", "Tensor", "Tensor", "OptimState8bit"]
    assert {optimizer.state[weight]["exp_avg"].dtype for weight in weights} == {torch.float32}
