"""The objective against plain Python floats that share no code with it."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simpo_cli.objective import segment_means, simpo_terms


def _reference(chosen: float, rejected: float, beta: float, gamma: float, kind: str, e: float, sft: float) -> float:
    d = beta * chosen - beta * rejected - gamma
    sigmoid = (1 - e) * math.log1p(math.exp(-d)) + e * math.log1p(math.exp(d))
    return (max(0.0, 1.0 - d) if kind == "hinge" else sigmoid) + sft * -chosen


_MEAN = st.floats(-20, 0)


@given(
    pairs=st.lists(st.tuples(_MEAN, _MEAN), min_size=1, max_size=5),
    beta=st.floats(0.1, 10),
    gamma=st.floats(0, 5),
    kind=st.sampled_from(["sigmoid", "hinge"]),
    smoothing=st.sampled_from([0.0, 0.1, 0.3]),
    sft=st.sampled_from([0.0, 0.5]),
)
def test_terms_are_the_equation(
    pairs: list[tuple[float, float]], beta: float, gamma: float, kind: str, smoothing: float, sft: float
) -> None:
    smoothing = 0.0 if kind == "hinge" else smoothing
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    terms = simpo_terms(
        chosen,
        rejected,
        beta=beta,
        gamma=gamma,
        loss_type=kind,  # type: ignore[arg-type]
        label_smoothing=smoothing,
        sft_weight=sft,
    )
    expected = [_reference(c, r, beta, gamma, kind, smoothing, sft) for c, r in pairs]
    assert terms.losses.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert terms.rewards_chosen.tolist() == pytest.approx([beta * c for c, _ in pairs])
    assert terms.rewards_rejected.tolist() == pytest.approx([beta * r for _, r in pairs])


def test_a_known_value() -> None:
    """Reward difference equal to the target: the loss is log 2."""
    terms = simpo_terms(torch.tensor([-1.5]), torch.tensor([-2.0]), beta=2.0, gamma=1.0)
    assert terms.losses.item() == pytest.approx(math.log(2))


def test_gradient_of_the_sigmoid_loss() -> None:
    """d loss / d m_w = -beta * sigmoid(-d), and the opposite for m_l: Eq. 6 differentiated by hand."""
    chosen = torch.tensor([-1.0, -3.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-2.0, -1.0], dtype=torch.float64, requires_grad=True)
    simpo_terms(chosen, rejected, beta=2.5, gamma=0.75).losses.sum().backward()
    expected = [-2.5 / (1 + math.exp(2.5 * (c - r) - 0.75)) for c, r in ((-1.0, -2.0), (-3.0, -1.0))]
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.tolist() == pytest.approx(expected)
    assert rejected.grad.tolist() == pytest.approx([-g for g in expected])


def test_extreme_margins_stay_finite() -> None:
    terms = simpo_terms(torch.tensor([-0.0, -2000.0]), torch.tensor([-2000.0, -0.0]), beta=10.0, gamma=5.0)
    assert torch.isfinite(terms.losses).all()
    assert terms.losses[1].item() == pytest.approx(20005.0)


def test_rewards_carry_no_gradient() -> None:
    chosen = torch.tensor([-1.0], requires_grad=True)
    terms = simpo_terms(chosen, torch.tensor([-2.0]), beta=2.0, gamma=1.0, sft_weight=1.0)
    assert not terms.rewards_chosen.requires_grad
    assert terms.losses.requires_grad


def test_segment_means_divides_each_response_by_its_own_length() -> None:
    random.seed(3)
    lengths = [1, 7, 2, 30]
    values = [[random.uniform(-5, 0) for _ in range(n)] for n in lengths]
    flat = torch.tensor([v for row in values for v in row], dtype=torch.float64)
    means = segment_means(flat, torch.tensor(lengths))
    assert means.tolist() == pytest.approx([sum(row) / len(row) for row in values])
