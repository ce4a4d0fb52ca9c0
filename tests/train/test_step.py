"""One step: the same gradient however it is cut up, and a stop before anything moves when a number is not finite."""

import math
from contextlib import nullcontext
from typing import Any, get_args

import pytest
import torch
from accelerate import Accelerator
from transformers import masking_utils

from simpo_cli.data.plan import Packing, microbatches
from simpo_cli.evaluate.scoring import score_pairs
from simpo_cli.model.not_finite import NotFiniteError
from simpo_cli.model.policy import Policy
from simpo_cli.model.shares import Share
from simpo_cli.objective import Objective, PairTerms
from simpo_cli.recipe.schema import LossRecipe
from simpo_cli.train.step import StepSums, accumulate, clip_gradients
from tests.model.reference import random_pairs, response_logps, simpo_loss_backward
from tests.tiny import tiny_model

PAIRS = random_pairs(13, seed=11)
CUTS = {
    "all at once": [list(range(13))],
    "one at a time": [[i] for i in range(13)],
    "uneven": [[3, 0, 12], [1], [2, 4, 5, 6, 7, 8], [9, 11, 10]],
    "by a budget": microbatches(PAIRS, 120, "padded"),
    "best fit": microbatches(PAIRS, 90, "shared_prefix"),
}


def _step(
    cut: list[list[int]], loss: LossRecipe | None = None, packing: Packing = "shared_prefix"
) -> tuple[StepSums, Any]:
    policy = Policy(tiny_model(dtype=torch.float64), packing).train()
    recipe = loss or LossRecipe()
    sums = accumulate(policy, PAIRS, Share(cut), loss=recipe, accelerator=Accelerator(cpu=True), step=0)
    return sums, policy.model


def _flat(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("packing", get_args(Packing))
@pytest.mark.parametrize("cut", CUTS)
def test_any_cut_gives_the_gradient_of_the_mean_over_the_pairs(cut: str, packing: Packing) -> None:
    sums, model = _step(CUTS[cut], packing=packing)
    reference = tiny_model(dtype=torch.float64)
    loss = simpo_loss_backward(reference, PAIRS, beta=2.0, gamma=1.0)
    assert sums.loss / sums.pairs == pytest.approx(loss, rel=1e-5)
    assert float((_flat(model) - _flat(reference)).norm() / _flat(reference).norm()) < 1e-5
    assert sums.grad_norm == pytest.approx(float(_flat(model).norm()), rel=1e-6)


def test_the_numbers_of_a_step_are_sums_over_all_its_pairs() -> None:
    sums, _ = _step(CUTS["uneven"])
    model = tiny_model(dtype=torch.float64)
    m = [
        [float(response_logps(model, p.prompt.tolist(), r.tolist()).mean()) for r in (p.chosen, p.rejected)]
        for p in PAIRS
    ]
    margins = [2 * (c - r) for c, r in m]
    assert sums.pairs == 13
    assert sums.logps_chosen == pytest.approx(sum(c for c, _ in m), rel=1e-5)
    assert sums.rewards_rejected == pytest.approx(2 * sum(r for _, r in m), rel=1e-5)
    assert sums.correct == sum(x > 0 for x in margins)
    assert sums.past_target == sum(x > 1.0 for x in margins)
    assert sums.tokens == sum(p.num_tokens for p in PAIRS)


def test_the_sft_term_is_in_the_loss_when_asked_for() -> None:
    plain, _ = _step(CUTS["all at once"])
    more, _ = _step(CUTS["all at once"], LossRecipe(sft_weight=0.5))
    assert more.loss == pytest.approx(plain.loss - 0.5 * plain.logps_chosen, rel=1e-6)


def test_a_loss_that_is_not_finite_is_that_of_its_own_pair_and_leaves_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, spoils = Objective.terms, iter([False, False, True])

    def spoilt(*args: Any) -> PairTerms:
        terms = real(*args)
        if next(spoils):
            terms.losses.data[1] = math.nan
        return terms

    monkeypatch.setattr(Objective, "terms", spoilt)
    policy = Policy(tiny_model()).train()
    cut = [[3, 0, 12], [1], [9, 11, 10, 2, 4, 5, 6, 7, 8]]
    with pytest.raises(NotFiniteError, match="step 1: the loss of 1 pair is not finite: random:11") as caught:
        accumulate(policy, PAIRS, Share(cut), loss=LossRecipe(), accelerator=Accelerator(cpu=True), step=0)
    assert caught.value.records == ["random:11"]
    assert all(parameter.grad is None for parameter in policy.parameters())


class _Reads:
    """A device that computes nothing and cannot be read: a read other than `Tensor.cpu` fails, and those are counted.

    torch's meta device stands for a card: `item`, `tolist`, `bool` and copies to the host raise on it, as they would
    wait on a card.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, packing: Packing) -> None:
        self.count, self.padded = 0, packing == "padded"
        monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: self._read(tensor))
        monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # torch has none for meta
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
        # the one wait of a micro-batch of padded rows: transformers asks whether the positions are of packed sequences
        monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", self._no_packed_sequences)

    def _read(self, tensor: torch.Tensor) -> torch.Tensor:
        assert tensor.is_meta
        self.count += 1
        return torch.ones(tensor.shape, dtype=tensor.dtype)

    def _no_packed_sequences(self, _: torch.Tensor) -> None:
        assert self.padded, "the shared prefix needs no mask"


@pytest.mark.parametrize("packing", get_args(Packing))
@pytest.mark.parametrize("cut", CUTS)
def test_a_step_waits_for_its_device_once_however_it_is_cut(
    cut: str, packing: Packing, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = _Reads(monkeypatch, packing)
    policy = Policy(tiny_model().to("meta"), packing).train()
    sums = accumulate(policy, PAIRS, Share(CUTS[cut]), loss=LossRecipe(), accelerator=Accelerator(), step=0)
    clip_gradients(policy, 0.5, norm=sums.grad_norm)
    assert reads.count == 1
    assert all(parameter.grad is not None for parameter in policy.parameters())


@pytest.mark.parametrize("packing", get_args(Packing))
def test_scoring_waits_for_its_device_once(packing: Packing, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = _Reads(monkeypatch, packing)
    policy = Policy(tiny_model().to("meta"), packing)
    score_pairs(policy, PAIRS, Accelerator(), budget=60)
    assert reads.count == 1


@pytest.mark.parametrize(("most", "expected"), [(1.0, 1.0), (0.0, 5.0), (10.0, 5.0)])
def test_gradients_are_scaled_down_and_never_up(most: float, expected: float) -> None:
    policy = Policy(tiny_model())
    parameter = next(policy.parameters())
    parameter.grad = torch.zeros_like(parameter)
    parameter.grad.view(-1)[:2] = torch.tensor([3.0, 4.0])
    clip_gradients(policy, most, norm=5.0)
    assert float(parameter.grad.norm()) == pytest.approx(expected, rel=1e-4)
