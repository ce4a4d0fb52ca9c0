"""Random pairs, the slow, obvious way to score them (one sequence at a time, whole logits), and comparisons with it.

The slow way shares no code with the package.
"""

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import Packing
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.packed import PairSpan, pack
from simpo_cli.model.policy import Policy
from simpo_cli.objective import Objective
from simpo_cli.recipe.schema import LoraRecipe, LossRecipe


def response_logps(model: Any, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """(len(response),) log-probs of a response behind its prompt, from the model's own whole logits."""
    ids = torch.tensor([[*prompt, *response]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0].to(torch.promote_types(model.dtype, torch.float32))
    before_each = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
    return torch.log_softmax(logits, dim=-1)[before_each, torch.tensor([*response])]


def simpo_loss(model: Any, pairs: Sequence[EncodedPair], beta: float, gamma: float) -> Tensor:
    """Mean loss of pairs by Eq. 6 of the paper, pair by pair."""
    losses = []
    for pair in pairs:
        chosen = response_logps(model, pair.prompt.tolist(), pair.chosen.tolist())
        rejected = response_logps(model, pair.prompt.tolist(), pair.rejected.tolist())
        margin = beta * chosen.sum() / len(pair.chosen) - beta * rejected.sum() / len(pair.rejected) - gamma
        losses.append(torch.log1p(torch.exp(-margin)))
    return sum(losses[1:], losses[0]) / len(losses)


def simpo_loss_backward(model: Any, pairs: Sequence[EncodedPair], beta: float, gamma: float) -> float:
    """The same with its gradient added to the parameters, one pair in memory at a time; returns the loss."""
    total = 0.0
    for pair in pairs:
        loss = simpo_loss(model, [pair], beta, gamma) / len(pairs)
        loss.backward()
        total += loss.item()
    assert math.isfinite(total)
    return total


def random_pairs(count: int, *, seed: int, longest: int = 24) -> list[EncodedPair]:
    """Pairs of random ids (never a pad id's business: any id may occur) and random lengths from 1 up."""
    draw = random.Random(seed)

    def ids(most: int) -> np.ndarray:
        return np.array([draw.randrange(400) for _ in range(draw.randint(1, most))], dtype=np.int32)

    return [
        EncodedPair(ids(longest), ids(longest), ids(longest), prompt_key=f"{seed}-{i}", where=f"random:{i}")
        for i in range(count)
    ]


def adapted(model: nn.Module, recipe: LoraRecipe) -> Any:
    """A model under adapters that are no longer at their start, where half of each is 0 and hides the other half."""
    adapted: Any = add_adapters(model, recipe)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return adapted


def policy_loss(policy: Policy, pairs: Sequence[EncodedPair]) -> Tensor:
    """Mean loss of pairs as a training step computes it."""
    chosen, rejected = policy.response_means(pack(pairs, policy.device))
    return Objective(LossRecipe()).terms(chosen, rejected).losses.mean()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients by parameter, taken from the model."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def relative(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference of two gradients over the norm of the second."""
    assert ours.keys() == expected.keys()
    squares = sum(float((ours[name] - other).double().square().sum()) for name, other in expected.items())
    return float((squares / sum(float(other.double().square().sum()) for other in expected.values())) ** 0.5)


def assert_equal_to_single_sequences(
    model: Any, packing: Packing, pairs: Sequence[EncodedPair], *, recompute: bool = False
) -> dict[str, Tensor]:
    """Log-probs, loss and every gradient of a policy are those of single sequences; returns the gradient."""
    exact = model.dtype == torch.float64
    single = torch.cat([response_logps(model, p.prompt, r) for p in pairs for r in (p.chosen, p.rejected)])
    loss = simpo_loss_backward(model, pairs, 2.0, 1.0)
    expected = gradients(model)

    policy = Policy(model, packing).train(recompute)
    if recompute:
        policy.recompute_activations()
    torch.testing.assert_close(policy(pack(pairs, policy.device)), single, rtol=0, atol=1e-5 if exact else 2e-4)
    ours = policy_loss(policy, pairs)
    ours.backward()
    assert math.isclose(ours.item(), loss, rel_tol=1e-6 if exact else 1e-4)
    found = gradients(model)
    assert len(found) > 1
    # parts of the models compute in float32 whatever the weights are: rotary angles, norms
    assert relative(found, expected) < (1e-6 if exact else 1e-3)
    return found


# Attention


def random_states(
    spans: Sequence[PairSpan], heads: tuple[int, int], *, seed: int, width: int = 8, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Queries, keys and values, (1, heads, T, width), in memory as a projection leaves them: (1, T, heads, width)."""
    generator = torch.Generator().manual_seed(seed)
    rows = [
        torch.randn(1, spans[-1].end, count, width, generator=generator, dtype=torch.float64)
        for count in (*heads, heads[1])
    ]
    return [states.to(dtype).transpose(1, 2).requires_grad_() for states in rows]


def visible(spans: Sequence[PairSpan], window: int | None) -> Tensor:
    """(T, T): who sees whom, from what each token is: its pair, its segment and its position."""
    tokens = [
        (pair, segment, at + (span.prompt if segment else 0))
        for pair, span in enumerate(spans)
        for segment, length in enumerate((span.prompt, span.chosen, span.rejected))
        for at in range(length)
    ]
    pair, segment, position = torch.tensor(tokens).unbind(1)
    before = position[:, None] - position
    seen = (pair[:, None] == pair) & ((segment == 0) | (segment[:, None] == segment)) & (before >= 0)
    return seen if window is None else seen & (before < window)


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Sequence[PairSpan],
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """(1, T, H, D) from the (T, T) scores of every head."""
    key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
    scores = query @ key.mT * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible(spans, window).to(query.device), float("-inf"))
    if sinks is not None:  # a key more, without a value
        scores = torch.cat([scores, sinks[None, :, None, None].expand(*scores.shape[:-1], 1)], -1)
    return (scores.softmax(-1)[..., : key.shape[2]] @ value).transpose(1, 2)


def assert_same_with_gradients(ours: Tensor, expected: Tensor, inputs: Sequence[Tensor]) -> None:
    """Two results agree, and so do the gradients of an uneven sum of each by all inputs."""
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(expected)
    for mine, own in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, own, rtol=0, atol=1e-11)
