"""Soft-capped attention through FlexAttention: exact against one sequence at a time, and used only where it is right.

On a CPU torch computes FlexAttention unfused, backward as well once its check of the device is set aside: what is
tested here is what is asked of it. That its kernel computes this is tested on a card, and by the self-check.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as torchs

from simpo_cli.data.pair import EncodedPair
from simpo_cli.model import self_check
from simpo_cli.model.attention import flex, interface
from simpo_cli.model.attention.flex import attend_flex, block_mask, fits_flex
from simpo_cli.model.attention.interface import Heads, kernel_difference
from simpo_cli.model.packed import PairSpan, layout_of, pack
from simpo_cli.model.policy import Policy
from simpo_cli.model.self_check import CheckPairs, SelfCheck, choose_packing
from tests.model.reference import (
    assert_equal_to_single_sequences,
    assert_same_with_gradients,
    plain_attention,
    random_pairs,
    random_states,
    visible,
)
from tests.tiny import tiny_model

CPU = torch.device("cpu")
SHORT = (PairSpan(0, 5, 3, 4), PairSpan(12, 1, 0, 2), PairSpan(15, 9, 1, 0), PairSpan(25, 1, 1, 1))
LONG = (PairSpan(0, 500, 300, 17), PairSpan(817, 1, 0, 400), PairSpan(1218, 700, 128, 129))
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(autouse=True)
def _backward_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchs, "_validate_device", lambda *_: None)
    block_mask.cache_clear()
    torch._dynamo.reset()


def _states(spans: Sequence[PairSpan], heads: tuple[int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return random_states(spans, heads, seed=1, width=16, dtype=dtype)


@pytest.mark.parametrize("window", [None, 1, 3, 7])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_attention_and_its_gradient(heads: tuple[int, int], window: int | None) -> None:
    states = _states(SHORT, heads)
    expected = plain_attention(*states, SHORT, 0.4, window=window, softcap=1.5)
    assert_same_with_gradients(attend_flex(*states, SHORT, 0.4, window, 1.5), expected, states)


@pytest.mark.parametrize("window", [None, 1, 100, 300])
@pytest.mark.parametrize("spans", [SHORT, LONG, (PairSpan(0, 128, 128, 128),)], ids=["short", "long", "whole blocks"])
def test_the_block_mask_is_the_one_that_torch_makes_of_all_scores(
    spans: tuple[PairSpan, ...], window: int | None
) -> None:
    length = spans[-1].end
    ours = block_mask(spans, window, CPU)
    own = torchs.create_block_mask(ours.mask_mod, 1, 1, length, length, device="cpu")
    for which in ("kv", "q"):
        for name in (f"{which}_num_blocks", f"{which}_indices", f"full_{which}_num_blocks", f"full_{which}_indices"):
            assert torch.equal(getattr(ours, name), getattr(own, name)), name
    assert ours.shape == own.shape
    if spans == SHORT:
        rows = torch.arange(length)
        seen = ours.mask_mod(rows, rows, rows[:, None], rows[None, :])
        assert torch.equal(seen, visible(spans, window))
    elif window != 1 and window != 100:
        assert int(ours.full_kv_num_blocks.sum()) > 0  # else the case tests nothing of them


def test_layers_with_the_same_window_share_a_mask() -> None:
    states = _states(SHORT, (4, 2))
    for window in (3, None, 3, None):
        attend_flex(*states, SHORT, 0.4, window, 1.5)
    assert (block_mask.cache_info().misses, block_mask.cache_info().hits) == (2, 2)


def test_it_is_compiled_once_for_all_packs_windows_caps_and_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for packs of one block and once for all others; a number among the inputs would make it fail or repeat."""
    counter = CompileCounterWithBackend("aot_eager")
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **given: compile_(function, backend=counter, **given))
    flex._compiled.cache_clear()
    compiled = flex._compiled()
    flex._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", compile_)
    plain, seen = flex._flex, []
    middle = (PairSpan(0, 200, 100, 17), PairSpan(317, 1, 0, 40))
    packs = (SHORT, middle, SHORT[:1], middle[:1], (*middle, PairSpan(358, 30, 1, 1)))
    for number, (spans, window) in enumerate(zip(packs, (None, 6, 6, None, 3), strict=True)):
        states = _states(spans, (4, 2), torch.float32)
        results = []
        for function in (compiled, plain):
            monkeypatch.setattr(flex, "_flex", function)
            output = attend_flex(*states, spans, 0.3 + number / 10, window, 1.5 + number)
            results.append([output, *torch.autograd.grad(output.square().sum(), states)])
        for ours, own in zip(*results, strict=True):
            torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)
        seen.append(len(counter.graphs))
    assert 0 < seen[0] < seen[1] == seen[-1]


def _gemma(dtype: torch.dtype, **changes: Any) -> Any:
    sizes: dict[str, Any] = {
        "sliding_window": 6,  # shorter than most prompts
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 5.0,
        "head_dim": 16,
        "query_pre_attn_scalar": 10,
        "attn_implementation": "eager",
    }
    return tiny_model("gemma2", dtype=dtype, **{**sizes, **changes})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Flex wherever there is a soft cap, also on a CPU; the windows that it was called with."""
    windows: list[int | None] = []

    def counted(*given: Any) -> Tensor:
        windows.append(given[5])
        return attend_flex(*given)

    monkeypatch.setattr(interface, "fits_flex", lambda *_: True)
    monkeypatch.setattr(interface, "attend_flex", counted)
    return windows


def _shortest() -> list[EncodedPair]:
    """A one-token prompt with one-token responses, and with longer ones."""
    pairs = random_pairs(2, seed=3, longest=9)
    [one] = random_pairs(1, seed=4, longest=1)
    return [one, EncodedPair(one.prompt, pairs[0].chosen, one.rejected, "p", "w"), *pairs]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("pairs", [random_pairs(7, seed=5), _shortest()], ids=["many", "shortest"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gemma_2_is_exact_loss_and_every_gradient(
    pairs: list[EncodedPair],
    dtype: torch.dtype,
    checkpointing: bool,
    calls: list[int | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if checkpointing:
        # as on a card; not compiled, FlexAttention differentiates its score function in the forward pass, where
        # checkpointing recomputes the layer for it and gradients come out wrong
        compiled = torch.compile(flex._flex, backend="aot_eager", dynamic=True, fullgraph=True)
        monkeypatch.setattr(flex, "_flex", compiled)
    assert_equal_to_single_sequences(_gemma(dtype), "shared_prefix", pairs, recompute=checkpointing)
    assert set(calls) == {None, 6}


def test_where_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card from Ampere on with triton, in half precision, keys as wide as values; the rest goes by segment."""

    def state(device: str = "cuda", dtype: torch.dtype = torch.bfloat16, width: int = 64) -> Any:
        return SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(1, 2, 3, width))

    def fits(*, capability: tuple[int, int] = (9, 0), triton: Any = "there", values: int = 64, **given: Any) -> bool:
        flex._has_kernel.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(flex, "find_spec", lambda _: triton)
        return fits_flex(state(**given), state(**given), state(**{**given, "width": values}))

    assert fits()
    assert fits(dtype=torch.float16)
    assert not fits(dtype=torch.float32)
    assert not fits(device="cpu")
    assert not fits(values=32)
    assert not fits(capability=(7, 5))
    assert not fits(triton=None)
    flex._has_kernel.cache_clear()


def test_sinks_and_layers_without_a_cap_are_not_for_it(calls: list[int | None]) -> None:
    layer: Any = SimpleNamespace(is_causal=True)
    states = _states(SHORT, (4, 2))
    for given, asked in (
        ({}, []),
        ({"softcap": 2.0, "s_aux": torch.zeros(4)}, []),
        ({"softcap": 2.0, "flex": False}, []),
        ({"softcap": 2.0}, [None]),
    ):
        spans: dict[str, Any] = {interface.SPANS: layout_of(SHORT, CPU)}
        interface.shared_prefix_attention(layer, *states, None, **spans, **given)
        assert calls == asked


PAIRS = random_pairs(6, seed=21)
CHECK = CheckPairs.of(PAIRS, PAIRS[:4])


def _checked(monkeypatch: pytest.MonkeyPatch, difference: Any, model: Any) -> tuple[SelfCheck, Policy]:
    monkeypatch.setattr(self_check, "has_kernel", lambda *given: given[-1] is not None)
    monkeypatch.setattr(self_check, "kernel_difference", difference)
    policy = Policy(model).train()
    return choose_packing(policy, "auto", None, CHECK), policy


def _raises(*_: Any) -> float:
    raise RuntimeError("no kernel for this\nand more")


@pytest.mark.parametrize(
    ("difference", "why"),
    [
        (lambda *_: 0.01, None),
        (_raises, "RuntimeError: no kernel for this"),
        (lambda *_: 0.2, "this card's attention kernel differs from plain attention by 0.2 of its norm"),
        (lambda *_: float("nan"), "this card's attention kernel differs from plain attention by nan of its norm"),
    ],
    ids=["is right", "raises", "differs", "not a number"],
)
def test_a_kernel_that_is_not_right_is_left_alone_and_prompts_stay_shared(
    difference: Any, why: str | None, monkeypatch: pytest.MonkeyPatch, calls: list[int | None]
) -> None:
    asked: list[Any] = []
    check, policy = _checked(monkeypatch, lambda *given: asked.append(given[1:]) or difference(), _gemma(torch.float32))
    assert (check.packing, check.why_padded, check.why_by_segment) == ("shared_prefix", None, why)
    assert (f"soft-capped attention segment by segment ({why}) · self-check: " in str(check)) == (why is not None)
    assert SelfCheck.from_json(check.as_json()) == check
    assert policy.flex == (why is None)
    calls.clear()
    policy(pack(PAIRS, CPU))
    assert len(calls) == (2 if why is None else 0)
    if why is None:
        assert set(asked) == {(Heads(4, 2, 16), window, 5.0, CPU) for window in (None, 6)}
        old = {name: value for name, value in check.as_json().items() if name != "why_by_segment"}
        assert SelfCheck.from_json(old) == check  # as a run of before wrote it


def test_models_without_a_cap_are_not_compared_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check, policy = _checked(monkeypatch, _raises, tiny_model())
    assert (check.packing, check.why_by_segment, policy.flex) == ("shared_prefix", None, True)


@pytest.mark.parametrize("window", [None, 64])
def test_the_comparison_sees_a_lost_cap_and_a_lost_window(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = (PairSpan(0, 200, 60, 77), PairSpan(337, 1, 0, 40))
    right = attend_flex
    heads = Heads(4, 2, 16)
    monkeypatch.setattr(interface, "fits_flex", lambda *_: True)
    assert 0 < kernel_difference(spans, heads, window, 50.0, CPU) < 0.015
    monkeypatch.setattr(interface, "attend_flex", lambda q, k, v, s, scale, at, _: right(q, k, v, s, scale, at, 1e4))
    assert kernel_difference(spans, heads, window, 50.0, CPU) > 2 * self_check.MOST_KERNEL_DIFFERENCE
    other = 63 if window else 100
    lost = lambda q, k, v, s, scale, _, cap: right(q, k, v, s, scale, other, cap)  # noqa: E731
    monkeypatch.setattr(interface, "attend_flex", lost)
    assert kernel_difference(spans, heads, window, 50.0, CPU) > self_check.MOST_KERNEL_DIFFERENCE


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.cuda
@cuda
@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize(("heads", "width"), [((8, 4), 256), ((4, 4), 128)])
@pytest.mark.parametrize("spans", [SHORT, LONG], ids=["short", "long"])
def test_the_kernel_of_a_card_agrees_with_attention_by_segment(
    spans: tuple[PairSpan, ...], heads: tuple[int, int], width: int, window: int | None
) -> None:
    assert 0 < kernel_difference(spans, Heads(*heads, width), window, 50.0, torch.device("cuda")) < 0.02
