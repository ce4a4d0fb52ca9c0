"""Attention over packed pairs against plain softmax attention over each sequence by itself."""

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from simpo_cli.model.attention import varlen_cuda
from simpo_cli.model.attention.by_segment import attend_by_segment
from simpo_cli.model.attention.interface import Heads, kernel_difference
from simpo_cli.model.attention.operator import packed_attention
from simpo_cli.model.attention.varlen_cuda import fits_varlen
from simpo_cli.model.packed import PairSpan, layout_of, spans_of
from tests.model import flash_operators
from tests.model.flash_operators import FlashOperators
from tests.model.reference import assert_same_with_gradients, plain_attention, random_states

CPU = torch.device("cpu")


def _spans(seed: int, count: int = 4) -> tuple[PairSpan, ...]:
    draw = random.Random(seed)
    return _spans_of(*((draw.randint(1, 9), draw.randint(0 if n else 1, 9), draw.randint(0, 9)) for n in range(count)))


def _spans_of(*lengths: tuple[int, int, int]) -> tuple[PairSpan, ...]:
    return spans_of(tuple(n for pair in lengths for n in pair))


def attend_fused(query: Tensor, key: Tensor, value: Tensor, spans: Sequence[PairSpan], scale: float) -> Tensor:
    output, _ = packed_attention(query, key, value, *layout_of(spans, CPU), scale, None)
    assert isinstance(output, Tensor)
    return output


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("path", ["fused", "by segment"])
def test_plain_attention_and_its_gradient(path: str, heads: tuple[int, int]) -> None:
    seed = torch.seed() % 2**32
    print("seed", seed)
    spans = _spans(seed)
    states = random_states(spans, heads, seed=seed)
    if path == "fused":
        ours = attend_fused(*states, spans, 0.4)
    else:
        ours = attend_by_segment(*states, spans, 0.4, None, None, None)
    assert_same_with_gradients(ours, plain_attention(*states, spans, 0.4), states)


@pytest.mark.parametrize(
    ("window", "softcap", "with_sinks"),
    [(3, None, False), (None, 1.5, False), (None, None, True), (4, 1.5, True), (1, None, False)],
)
def test_windows_soft_caps_and_sinks(window: int | None, softcap: float | None, with_sinks: bool) -> None:
    spans = _spans(5)
    states = random_states(spans, (4, 2), seed=30)
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True) if with_sinks else None
    inputs = [*states, *([] if sinks is None else [sinks])]
    ours = attend_by_segment(*states, spans, 0.4, window, softcap, sinks)
    expected = plain_attention(*states, spans, 0.4, window=window, softcap=softcap, sinks=sinks)
    assert_same_with_gradients(ours, expected, inputs)


def test_pairs_of_a_pack_do_not_touch_each_other() -> None:
    """Changing one pair's rows leaves every bit of the others' results as it was."""
    spans = _spans(6)
    states = [tensor.detach() for tensor in random_states(spans, (4, 4), seed=40, dtype=torch.float32)]
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
    narrow = [tensor.detach() for tensor in random_states(spans, (4, 4), seed=50, dtype=torch.bfloat16)]
    expected = plain_attention(*[tensor.double() for tensor in narrow], spans, 0.4)
    fused = attend_fused(*narrow, spans, 0.4)
    segments = attend_by_segment(*narrow, spans, 0.4, None, None, None)
    assert fused.dtype == torch.bfloat16
    assert (fused.double() - expected).abs().max() < 2 * (segments.double() - expected).abs().max()


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
    for spans in (_spans(seed), _spans_of((1, 0, 0)), _spans_of((1, 0, 1), (1, 1, 0), (2, 0, 0), (1, 3, 3))):
        states = random_states(spans, heads, seed=seed)
        ours, _ = packed_attention(*states, *layout_of(spans, CPU), 0.4, window)
        assert_same_with_gradients(ours, plain_attention(*states, spans, 0.4, window=window), states)
    assert len(flash.calls) == 6
    assert all(call["scale"] == 0.4 for call in flash.calls)
    assert flash.calls[0].get("num_splits") == (1 if version == "2.13" else None)
    assert {call["window_size_left"] for call in flash.calls[-2:]} == {window - 1 if window in (1, 3) else -1}


def test_copies_of_a_row_are_added_up_wide() -> None:
    """1 + 2^-9 + 2^-8 is 1.0078 in bf16 when it is rounded once, and 1 when after each sum."""
    layout = layout_of(_spans_of((1, 1, 1)), CPU)
    call = varlen_cuda._Call(*layout, 1.0, None)
    gradient = torch.tensor([1.0, 2**-9, 8.0, 2**-8, 8.0]).to(torch.bfloat16)[:, None, None].expand(5, 1, 8)
    assert call.summed(gradient)[0, 0, :, 0].tolist() == [1.0078125, 8.0, 8.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_is_what_a_compiler_takes_it_for(dtype: torch.dtype) -> None:
    """Shapes, strides and types of the fake kernels, the schema, and the gradient's registration."""
    spans = _spans(9)
    states = random_states(spans, (4, 2), seed=70, dtype=dtype)
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
