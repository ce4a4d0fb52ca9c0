"""Chunked log-probs: whatever the chunk, the same numbers and gradients, and never the whole logits."""

import pytest
import torch
from torch import nn

from simpo_cli.model import logprobs
from simpo_cli.model.logprobs import LogitScale, token_logprobs

SCALES = [LogitScale(), LogitScale(0.5), LogitScale(2.0, soft_cap=3.0)]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_any_chunk_gives_the_same_gradient(scale: LogitScale, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "_CHUNK_ELEMENTS", chunk * 11)
    torch.manual_seed(0)
    head = nn.Linear(6, 11, dtype=torch.float64)
    states = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (20,))
    weights = torch.randn(20, dtype=torch.float64)

    (token_logprobs(states, targets, head, scale, 11) * weights).sum().backward()
    assert states.grad is not None
    assert head.weight.grad is not None
    got = (states.grad.clone(), head.weight.grad.clone())
    states.grad = head.weight.grad = None

    logits = scale.factor * head(states)
    if scale.soft_cap is not None:
        logits = torch.tanh(logits / scale.soft_cap) * scale.soft_cap
    (torch.log_softmax(logits, -1)[range(20), targets] * weights).sum().backward()
    torch.testing.assert_close(got[0], states.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got[1], head.weight.grad, rtol=1e-5, atol=1e-6)


def test_no_more_than_a_chunk_of_logits_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "_CHUNK_ELEMENTS", 4 * 11)
    rows: list[int] = []
    head = nn.Linear(6, 11)
    head.register_forward_hook(lambda *args: rows.append(len(args[2])))
    states = torch.randn(18, 6, requires_grad=True)
    token_logprobs(states, torch.zeros(18, dtype=torch.int64), head, LogitScale(), 11).sum().backward()
    assert rows == [4, 4, 4, 4, 2, 2, 4, 4, 4, 4]  # forward, then each chunk again in the backward pass


def test_without_gradients_nothing_is_computed_twice() -> None:
    rows: list[int] = []
    head = nn.Linear(6, 11)
    head.register_forward_hook(lambda *args: rows.append(len(args[2])))
    with torch.no_grad():
        token_logprobs(torch.randn(18, 6), torch.zeros(18, dtype=torch.int64), head, LogitScale(), 11)
    assert rows == [18]


def test_log_probs_are_float32_under_autocast() -> None:
    head = nn.Linear(6, 11)
    with torch.autocast("cpu", torch.bfloat16):
        logps = token_logprobs(torch.randn(5, 6), torch.zeros(5, dtype=torch.int64), head, LogitScale(), 11)
    assert logps.dtype == torch.float32
