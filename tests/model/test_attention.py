"""Attention over packed pairs against plain softmax attention over each sequence by itself."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from simpo_cli.model.attention import by_segment, varlen_cuda
from simpo_cli.model.attention.by_segment import attend_by_segment
from simpo_cli.model.attention.fused_cpu import attend_fused
from simpo_cli.model.attention.varlen_cuda import fits_varlen, kernel_difference, sequences
from simpo_cli.model.packed import PairSpan


def _spans(seed: int, count: int = 4) -> tuple[PairSpan, ...]:
    draw = random.Random(seed)
    spans, start = [], 0
    for number in range(count):
        fewest = 0 if number else 1
        span = PairSpan(start, draw.randint(1, 9), draw.randint(fewest, 9), draw.randint(0, 9))
        spans.append(span)
        start = span.end
    return tuple(spans)


def _states(spans: Sequence[PairSpan], heads: int, dtype: torch.dtype, seed: int, width: int = 8) -> Tensor:
    """(1, heads, T, width) in memory as a projection leaves it: (1, T, heads, width)."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(1, spans[-1].end, heads, width, generator=generator, dtype=torch.float64).to(dtype)
    return rows.transpose(1, 2).requires_grad_()


def _reference(
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
    """(1, T, H, D): query by query, head by head, over the rows it may see."""
    groups = query.shape[1] // key.shape[1]
    output = torch.zeros(query.shape[2], query.shape[1], value.shape[-1], dtype=query.dtype)
    for span in spans:
        prompt = list(range(span.start, span.start + span.prompt))
        chosen = list(range(span.start + span.prompt, span.start + span.prompt + span.chosen))
        rejected = list(range(span.end - span.rejected, span.end))
        for sequence, own in ((prompt, prompt), (prompt + chosen, chosen), (prompt + rejected, rejected)):
            for at in own:
                place = sequence.index(at)
                seen = sequence[max(0, place + 1 - window) if window else 0 : place + 1]
                for head in range(query.shape[1]):
                    scores = key[0, head // groups, seen] @ query[0, head, at] * scale
                    if softcap is not None:
                        scores = softcap * torch.tanh(scores / softcap)
                    if sinks is not None:
                        scores = torch.cat([scores, sinks[head, None]])
                    weights = torch.softmax(scores, 0)[: len(seen)]
                    output[at, head] = weights @ value[0, head // groups, seen]
    return output[None]


def _assert_same_with_gradients(ours: Tensor, expected: Tensor, inputs: Sequence[Tensor]) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(expected)
    for mine, own in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, own, rtol=0, atol=1e-11)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("path", ["fused", "by segment"])
def test_plain_attention_and_its_gradient(path: str, heads: tuple[int, int]) -> None:
    seed = torch.seed() % 2**32
    print("seed", seed)
    spans = _spans(seed)
    states = [_states(spans, count, torch.float64, seed + i) for i, count in enumerate((heads[0], heads[1], heads[1]))]
    if path == "fused":
        ours = attend_fused(*states, spans, 0.4)
    else:
        ours = attend_by_segment(*states, spans, 0.4, None, None, None)
    expected = _reference(*states, spans, 0.4)
    _assert_same_with_gradients(ours, expected, states)


@pytest.mark.parametrize(
    ("window", "softcap", "with_sinks"),
    [(3, None, False), (None, 1.5, False), (None, None, True), (4, 1.5, True), (1, None, False)],
)
def test_windows_soft_caps_and_sinks(window: int | None, softcap: float | None, with_sinks: bool) -> None:
    spans = _spans(5)
    states = [_states(spans, heads, torch.float64, 30 + i) for i, heads in enumerate((4, 2, 2))]
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True) if with_sinks else None
    inputs = [*states, *([] if sinks is None else [sinks])]
    ours = attend_by_segment(*states, spans, 0.4, window, softcap, sinks)
    expected = _reference(*states, spans, 0.4, window=window, softcap=softcap, sinks=sinks)
    _assert_same_with_gradients(ours, expected, inputs)


def test_pairs_of_a_pack_do_not_touch_each_other() -> None:
    """Changing one pair's rows leaves every bit of the others' results as it was."""
    spans = _spans(6)
    states = [_states(spans, 4, torch.float32, 40 + i).detach() for i in range(3)]
    before = attend_fused(*states, spans, 0.4)
    middle = slice(spans[1].start, spans[1].end)
    for tensor in states:
        tensor[:, :, middle] += 1.0
    after = attend_fused(*states, spans, 0.4)
    changed = (after != before).any(dim=-1).any(dim=-1)[0]
    assert changed[middle].any()
    assert not changed[: spans[1].start].any()
    assert not changed[spans[1].end :].any()


def test_bf16_is_merged_without_more_error_than_the_kernel_has() -> None:
    spans = _spans(7, count=6)
    exact = [_states(spans, 4, torch.float64, 50 + i).detach() for i in range(3)]
    narrow = [tensor.to(torch.bfloat16) for tensor in exact]
    expected = _reference(*[tensor.double() for tensor in narrow], spans, 0.4)
    fused = attend_fused(*narrow, spans, 0.4)
    segments = attend_by_segment(*narrow, spans, 0.4, None, None, None)
    assert fused.dtype == torch.bfloat16
    assert (fused.double() - expected).abs().max() < 2 * (segments.double() - expected).abs().max()


def test_the_sequences_of_a_variable_length_kernel() -> None:
    """Following the ends through queries and keys gives the three sequences of each pair."""
    spans = (PairSpan(0, 3, 2, 0), PairSpan(5, 1, 0, 2))
    rows, query_ends, key_ends, most_queries, most_keys = sequences(spans, torch.device("cpu"))
    keys = [rows[first:last].tolist() for first, last in pairwise(key_ends)]
    assert keys == [[0, 1, 2], [0, 1, 2, 3, 4], [5], [5, 6, 7]]
    assert query_ends.tolist() == [0, 3, 5, 6, 8]
    assert (most_queries, most_keys) == (3, 5)
    assert query_ends.dtype == key_ends.dtype == torch.int32


def test_the_kernel_for_cards_is_not_asked_on_a_cpu() -> None:
    assert not fits_varlen(torch.zeros(1, 2, 3, 4, dtype=torch.bfloat16))


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.cuda
@cuda
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_the_kernel_of_a_card_agrees_with_attention_by_segment(heads: tuple[int, int], window: int | None) -> None:
    spans = _spans(8, count=6)
    difference = kernel_difference(spans, *heads, 64, window, torch.device("cuda"))
    assert 0 < difference < 0.02


@pytest.mark.parametrize("window", [None, 3])
def test_the_check_of_the_kernel_sees_a_mask_aligned_at_the_wrong_end(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the kernel replaced by plain attention the check finds rounding; with the mask shifted, much more."""
    device = torch.device("cpu")

    def right(
        query: Tensor, key: Tensor, value: Tensor, spans: Sequence[PairSpan], scale: float, at: int | None
    ) -> Tensor:
        return attend_by_segment(query, key, value, spans, scale, at, None, None)

    def wrong(
        query: Tensor, key: Tensor, value: Tensor, spans: Sequence[PairSpan], scale: float, at: int | None
    ) -> Tensor:
        monkeypatch.setattr(by_segment, "_visible", lambda q, k, *_: torch.ones(q, k, dtype=torch.bool).tril())
        try:
            return attend_by_segment(query, key, value, spans, scale, at, None, None)
        finally:
            monkeypatch.setattr(by_segment, "_visible", visible)

    visible = by_segment._visible
    monkeypatch.setattr(varlen_cuda, "attend_varlen", right)
    assert 0 < kernel_difference(_spans(8), 4, 2, 8, window, device) < 0.02
    monkeypatch.setattr(varlen_cuda, "attend_varlen", wrong)
    assert kernel_difference(_spans(8), 4, 2, 8, window, device) > 0.1
