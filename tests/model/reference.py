"""Random pairs, and the slow, obvious way: one sequence at a time, whole logits. Shares no code with the package."""

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simpo_cli.data.pair import EncodedPair


def response_logps(model: Any, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """(len(response),) log-probs of a response behind its prompt, from the model's own whole logits."""
    ids = torch.tensor([[*prompt, *response]])
    logits = model(input_ids=ids, use_cache=False).logits[0].to(torch.promote_types(model.dtype, torch.float32))
    logps = torch.log_softmax(logits, dim=-1)
    positions = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    return torch.stack([logps[at, token] for at, token in zip(positions, response, strict=True)])


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


def random_pairs(count: int, *, seed: int, vocab_size: int = 400, longest: int = 24) -> list[EncodedPair]:
    """Pairs of random ids (never a pad id's business: any id may occur) and random lengths from 1 up."""
    draw = random.Random(seed)

    def ids(most: int) -> np.ndarray:
        return np.array([draw.randrange(vocab_size) for _ in range(draw.randint(1, most))], dtype=np.int32)

    return [
        EncodedPair(ids(longest), ids(longest), ids(longest), prompt_key=f"{seed}-{i}", where=f"random:{i}")
        for i in range(count)
    ]
