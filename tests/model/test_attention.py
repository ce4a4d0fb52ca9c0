"""Attention over packed pairs against plain softmax attention over each sequence by itself."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from simpo_cli.model.attention import varlen_cuda
from simpo_cli.model.attention.by_segment import attend_by_segment
from simpo_cli.model.attention.interface import Heads, kernel_difference
from simpo_cli.model.attention.operator import packed_attention
from simpo_cli.model.attention.varlen_cuda import fits_varlen
from simpo_cli.model.packed import PairSpan, layout_of, sequences_of, sizes_of, spans_of
from tests.model import flash_operators
from tests.model.flash_operators import FlashOperators

CPU = torch.device("cpu")


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


def attend_fused(query: Tensor, key: Tensor, value: Tensor, spans: Sequence[PairSpan], scale: float) -> Tensor:
    output, _ = packed_attention(query, key, value, *layout_of(spans, CPU), scale, None)
    assert isinstance(output, Tensor)
    return output


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
    lengths = (3, 2, 0, 1, 0, 2)
    sizes = sizes_of(lengths)
    ends = sizes.sequences + 1
    rows, copies, query_ends, key_ends = torch.from_numpy(sequences_of(lengths)).split([12, 24, ends, ends])
    keys = [rows[first:last].tolist() for first, last in pairwise(key_ends)]
    assert keys == [[0, 1, 2], [0, 1, 2, 3, 4], [5], [5, 6, 7]]
    assert query_ends.tolist() == [0, 3, 5, 6, 8]
    assert sizes == (8, 12, 4, 3, 5)
    assert copies.view(3, 8).T.tolist() == [
        [0, 3, 12],
        [1, 4, 12],
        [2, 5, 12],
        [6, 12, 12],
        [7, 12, 12],
        [8, 9, 12],
        [10, 12, 12],
        [11, 12, 12],
    ]
    assert rows.dtype == torch.int32


def _tiny_spans(*lengths: tuple[int, int, int]) -> tuple[PairSpan, ...]:
    return spans_of(tuple(n for pair in lengths for n in pair))


@pytest.mark.parametrize("version", ["2.11", "2.13"])
@pytest.mark.parametrize("window", [None, 1, 3, 500])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
def test_the_way_of_a_card_is_exact(
    heads: tuple[int, int], window: int | None, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gathering, ends, window and the way back, with plain attention in the place of the kernels."""
    flash = FlashOperators(version)
    flash.put_in_place(monkeypatch)
    seed = torch.seed() % 2**32
    print("seed", seed)
    for spans in (_spans(seed), _tiny_spans((1, 0, 0)), _tiny_spans((1, 0, 1), (1, 1, 0), (2, 0, 0), (1, 3, 3))):
        states = [_states(spans, count, torch.float64, seed + i) for i, count in enumerate((*heads, heads[1]))]
        ours, _ = packed_attention(*states, *layout_of(spans, CPU), 0.4, window)
        _assert_same_with_gradients(ours, _reference(*states, spans, 0.4, window=window), states)
    assert len(flash.calls) == 6
    assert all(call["scale"] == 0.4 for call in flash.calls)
    assert flash.calls[0].get("num_splits") == (1 if version == "2.13" else None)
    assert {call["window_size_left"] for call in flash.calls[-2:]} == {window - 1 if window in (1, 3) else -1}


def test_copies_of_a_row_are_added_up_wide() -> None:
    """1 + 2^-9 + 2^-8 is 1.0078 in bf16 when it is rounded once, and 1 when after each sum."""
    layout = layout_of(_tiny_spans((1, 1, 1)), CPU)
    call = varlen_cuda._Call(*layout, 1.0, None)
    gradient = torch.tensor([1.0, 2**-9, 8.0, 2**-8, 8.0]).to(torch.bfloat16)[:, None, None].expand(5, 1, 8)
    assert call.summed(gradient)[0, 0, :, 0].tolist() == [1.0078125, 8.0, 8.0]


@pytest.mark.parametrize("broken", ["copies", "ends", "window"])
def test_a_wrong_way_to_the_kernel_is_noticed(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted breaks: a lost copy in the way back, keys of the neighbour, a window one too wide."""
    FlashOperators("2.13").put_in_place(monkeypatch)
    spans = _tiny_spans((4, 3, 2), (2, 4, 4))
    lengths, sequences = layout_of(spans, CPU)
    sizes = sizes_of(tuple(lengths.tolist()))
    window = 2
    if broken == "copies":
        sequences[sizes.keys + 2 * sizes.tokens + 3] = sizes.keys  # the last token of the first prompt
    elif broken == "ends":
        sequences[-3] += 1
    else:
        window = 3
    states = [_states(spans, 2, torch.float64, 60 + i, width=8) for i in range(3)]

    def compare() -> None:
        ours, _ = packed_attention(*states, lengths, sequences, 0.4, window)
        _assert_same_with_gradients(ours, _reference(*states, spans, 0.4, window=2), states)

    with pytest.raises(AssertionError):
        compare()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_is_what_a_compiler_takes_it_for(dtype: torch.dtype) -> None:
    """Shapes, strides and types of the fake kernels, the schema, and the gradient's registration."""
    spans = _spans(9)
    states = [_states(spans, heads, dtype, 70 + i) for i, heads in enumerate((4, 2, 2))]
    with torch.random.fork_rng():
        torch.library.opcheck(packed_attention, (*states, *layout_of(spans, CPU), 0.4, None), atol=0.05, rtol=0.05)


def test_a_card_that_is_asked_what_its_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fits(dtype: torch.dtype, width: int, capability: tuple[int, int] = (8, 0), device: str = "cuda") -> bool:
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
        with FakeTensorMode():
            return fits_varlen(torch.empty(1, 2, 3, width, dtype=dtype, device=device))

    assert fits(torch.bfloat16, 64)
    assert fits(torch.float16, 256)
    assert not fits(torch.float32, 64)
    assert not fits(torch.bfloat16, 64, (7, 5))
    assert not fits(torch.bfloat16, 100)  # no multiple of 8
    assert not fits(torch.bfloat16, 264)
    assert not fits(torch.bfloat16, 64, device="cpu")


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.cuda
@cuda
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_the_kernel_of_a_card_agrees_with_attention_by_segment(heads: tuple[int, int], window: int | None) -> None:
    spans = _spans(8, count=6)
    difference = kernel_difference(spans, Heads(*heads, 64), window, None, torch.device("cuda"))
    assert 0 < difference < 0.02


@pytest.mark.parametrize("window", [None, 3])
def test_the_check_of_the_kernel_sees_a_mask_aligned_at_the_wrong_end(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the kernel replaced by plain attention the check finds rounding; with the mask shifted, much more."""
    FlashOperators("2.13").put_in_place(monkeypatch)
    assert 0 < kernel_difference(_spans(8), Heads(4, 2, 8), window, None, CPU) < 0.02
    right = flash_operators._seen
    monkeypatch.setattr(flash_operators, "_seen", lambda queries, keys, left: right(queries, keys + 1, left)[:, :-1])
    assert kernel_difference(_spans(8), Heads(4, 2, 8), window, None, CPU) > 0.1
