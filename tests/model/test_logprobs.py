"""Chunked log-probs: whatever the chunk, the same numbers and gradients, and never the whole logits."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from simpo_cli.model import logprobs
from simpo_cli.model.logprobs import LogitScale, token_logprobs

SCALES = [LogitScale(), LogitScale(0.5), LogitScale(2.0, soft_cap=3.0)]


class _Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def _set_chunk(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(logprobs, "_CHUNK_ELEMENTS", 0)
    monkeypatch.setattr(logprobs, "_FEWEST_ROWS", rows)


def _called_as_module(head: nn.Linear) -> nn.Linear:
    """A hook makes the head one that has to be called."""
    head.register_forward_hook(lambda *_: None)
    return head


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_any_chunk_gives_the_same_gradient(
    scale: LogitScale, chunk: int, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set_chunk(monkeypatch, chunk)
    torch.manual_seed(0)
    head = nn.Linear(6, 11, dtype=torch.float64)
    states = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (20,))
    weights = torch.randn(20, dtype=torch.float64)
    inputs = [states, head.weight, head.bias]

    logits = scale.factor * head(states)
    if scale.soft_cap is not None:
        logits = torch.tanh(logits / scale.soft_cap) * scale.soft_cap
    expected = torch.log_softmax(logits, -1)[range(20), targets]
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)

    logps = token_logprobs(states, targets, head if plain else _called_as_module(head), scale, 11)
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-12)
    for ours, own in zip(torch.autograd.grad((logps * weights).sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(ours, own, rtol=0, atol=1e-12)


@pytest.mark.parametrize("plain", [True, False])
def test_nothing_grows_with_the_tokens_but_the_states(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    vocab, width = 500, 4
    _set_chunk(monkeypatch, 8)
    head = nn.Linear(width, vocab, bias=False)
    if not plain:
        _called_as_module(head)
    states = torch.randn(400, width, requires_grad=True)
    with _Largest() as seen:
        torch.autograd.backward(
            token_logprobs(states, torch.zeros(400, dtype=torch.int64), head, LogitScale(), vocab).sum()
        )
    assert seen.numel == 8 * vocab  # a chunk; all logits would be 400 * vocab


def test_a_frozen_head_gets_no_gradient_and_passes_the_states_theirs() -> None:
    torch.manual_seed(1)
    head = nn.Linear(6, 11, dtype=torch.float64).requires_grad_(False)
    states = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (20,))
    token_logprobs(states, targets, head, LogitScale(), 11).sum().backward()
    assert head.weight.grad is None
    expected = torch.log_softmax(head(states), -1)[range(20), targets].sum()
    assert states.grad is not None
    torch.testing.assert_close(states.grad, torch.autograd.grad(expected, states)[0], rtol=0, atol=1e-12)


def test_no_more_than_a_chunk_of_logits_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    _set_chunk(monkeypatch, 4)
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
