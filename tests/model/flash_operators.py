"""FlashAttention's two operators as a card has them, for machines without one: plain attention behind their signatures.

Every argument is checked as the kernels check theirs, so a call that would raise or read wrong memory on a card fails.
"""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from simpo_cli.model.attention import operator, varlen_cuda

_SHARED = "cum_seq_q cum_seq_k max_q max_k dropout_p is_causal"
FORWARD = f"query key value {_SHARED} return_debug_mask".split()
BACKWARD = f"grad_out query key value out logsumexp {_SHARED} rng_state unused".split()
WINDOW = ["scale", "window_size_left", "window_size_right"]
LATER = {"2.11": ["seqused_k", "alibi_slopes"], "2.13": ["seqused_k", "alibi_slopes", "block_table", "num_splits"]}


class FlashOperators:
    """Stand in for the operators of a version of torch; `calls` holds the arguments of each call by name."""

    def __init__(self, version: str) -> None:
        self.calls: list[dict[str, Any]] = []
        self.forward = _Operator(self._forward, FORWARD, [*WINDOW, *LATER[version]])
        self.backward = _Operator(self._backward, BACKWARD, WINDOW)

    def put_in_place(self, monkeypatch: Any) -> None:
        """Let tensors on a CPU go the way of those on a card."""
        monkeypatch.setattr(varlen_cuda, "_forward", self.forward)
        monkeypatch.setattr(varlen_cuda, "_backward", self.backward)
        monkeypatch.setattr(varlen_cuda, "_NO_SPLITS", varlen_cuda._splits())
        monkeypatch.setitem(operator.packed_attention._backend_fns, "cpu", varlen_cuda.attend)
        monkeypatch.setitem(operator.packed_attention_backward._backend_fns, "cpu", varlen_cuda.gradients)
        monkeypatch.setattr("simpo_cli.model.attention.interface.fits_varlen", lambda query: query.shape[-1] % 8 == 0)
        monkeypatch.setattr("simpo_cli.model.attention.interface._sees_all", lambda *_: False)  # no CPU's kernel

    def _forward(self, given: dict[str, Any]) -> tuple[Tensor, ...]:
        _check(given)
        assert given["return_debug_mask"] is False
        self.calls.append(given)
        output, normaliser = _attention(given)
        return output, normaliser, torch.zeros(2, dtype=torch.uint64), torch.empty(()), torch.empty(0)

    def _backward(self, given: dict[str, Any]) -> tuple[Tensor, ...]:
        _check(given)
        assert given["grad_out"].is_contiguous()
        assert given["rng_state"].dtype == torch.uint64
        self.calls.append(given)
        return _gradients(given)


class _Operator:
    def __init__(self, function: Any, positional: list[str], by_name: list[str]) -> None:
        self._function, self._positional, self._by_name = function, positional, by_name
        arguments = [SimpleNamespace(name=name) for name in (*positional, *by_name)]
        self.default = SimpleNamespace(_schema=SimpleNamespace(arguments=arguments))

    def __call__(self, *args: Any, **options: Any) -> Any:
        assert set(options) <= set(self._by_name)
        return self._function({**dict(zip(self._positional, args, strict=True)), **options})


def _check(given: dict[str, Any]) -> None:
    query, key, value = (given[name] for name in ("query", "key", "value"))
    assert query.dim() == key.dim() == value.dim() == 3
    assert key.shape == value.shape
    assert query.shape[1] % key.shape[1] == 0
    assert query.shape[2] == key.shape[2]
    assert query.shape[2] % 8 == 0
    assert all(states.stride(-1) == 1 for states in (query, key, value))
    for ends, most, rows in (("cum_seq_q", "max_q", query), ("cum_seq_k", "max_k", key)):
        assert given[ends].dtype == torch.int32
        assert given[ends].is_contiguous()
        assert given[ends][0] == 0
        assert given[ends][-1] == len(rows)
        assert given[most] == int(given[ends].diff().max())
        assert int(given[ends].diff().min()) > 0
    assert given["dropout_p"] == 0.0
    assert given["window_size_right"] == 0  # nothing that comes later
    assert given["is_causal"] is (given["window_size_left"] == -1)
    assert given.get("num_splits", 1) == 1


def _attention(given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(T, H, D) and (H, T), sequence by sequence."""
    outputs, normalisers = [], []
    for queries, keys in _sequences(given):
        scores, values = _scores(given, queries, keys), _widened(given, "value", keys)
        outputs.append(torch.einsum("hqk,khd->qhd", torch.softmax(scores, -1), values))
        normalisers.append(scores.logsumexp(-1))
    wide = torch.promote_types(given["query"].dtype, torch.float32)
    return torch.cat(outputs), torch.cat(normalisers, dim=1).to(wide)


def _gradients(given: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """From the output and the normaliser that were given, as the kernel takes them (Dao et al. 2022, section 3.2)."""
    found = tuple(torch.zeros_like(given[name]) for name in ("query", "key", "value"))
    groups = given["query"].shape[1] // given["key"].shape[1]
    for queries, keys in _sequences(given):
        gradient, output = given["grad_out"][queries], given["out"][queries]
        weights = (_scores(given, queries, keys) - given["logsumexp"][:, queries, None]).exp().to(output.dtype)
        of_weights = torch.einsum("qhd,khd->hqk", gradient, _widened(given, "value", keys))
        of_scores = weights * (of_weights - (gradient * output).sum(-1).T[..., None]) * given["scale"]
        found[0][queries] = torch.einsum("hqk,khd->qhd", of_scores, _widened(given, "key", keys))
        of_keys = torch.einsum("hqk,qhd->khd", of_scores, given["query"][queries])
        of_values = torch.einsum("hqk,qhd->khd", weights, gradient)
        for into, wide in ((found[1], of_keys), (found[2], of_values)):
            into[keys] = wide.unflatten(1, (-1, groups)).sum(2)
    return found


def _sequences(given: dict[str, Any]) -> list[tuple[slice, slice]]:
    ends = zip(pairwise(given["cum_seq_q"].tolist()), pairwise(given["cum_seq_k"].tolist()), strict=True)
    return [(slice(*queries), slice(*keys)) for queries, keys in ends]


def _scores(given: dict[str, Any], queries: slice, keys: slice) -> Tensor:
    """(H, queries, keys)."""
    query, key = given["query"][queries], _widened(given, "key", keys)
    scores = torch.einsum("qhd,khd->hqk", query, key) * given["scale"]
    return scores.masked_fill(~_seen(len(query), len(key), given["window_size_left"]), float("-inf"))


def _widened(given: dict[str, Any], name: str, keys: slice) -> Tensor:
    """Keys or values with as many heads as there are of queries."""
    return given[name][keys].repeat_interleave(given["query"].shape[1] // given["key"].shape[1], 1)


def _seen(queries: int, keys: int, left: int) -> Tensor:
    """(queries, keys): who sees whom, both ending at the same token."""
    before = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)[None]
    return (before >= 0) & (before <= left) if left >= 0 else before >= 0
