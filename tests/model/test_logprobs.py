"""Chunked log-probs: whatever the chunk, the same numbers and gradients, and never the whole logits."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from simpo_cli.model import logprobs, widened
from simpo_cli.model.logprobs import LogitScale, chunk_rows, plain_bytes_per_logit, token_logprobs
from tests.model.live_bytes import LiveBytes

SCALES = [LogitScale(), LogitScale(0.5), LogitScale(2.0, soft_cap=3.0)]


class _Products(TorchDispatchMode):
    """Counts matrix products, and computes those that only CUDA has, refusing what its kernels refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        if not name.startswith(("aten.mm", "aten.addmm")):
            return func(*args, **kwargs)
        self.count += 1
        if "dtype" not in name:
            return func(*args, **kwargs)
        *rest, left, right, out_dtype = args
        assert left.dtype == right.dtype == torch.bfloat16
        out = kwargs.pop("out")
        assert out.dtype == out_dtype == torch.float32
        assert not kwargs
        total = rest[0] if rest else torch.zeros_like(out)
        assert total.dtype in (out_dtype, left.dtype)
        return out.copy_(total + left.float() @ right.float())


def _emulate_cuda_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "_has_wide_products", lambda factor: factor.dtype == torch.bfloat16)


def _set_chunk(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(logprobs, "_CHUNK_ELEMENTS", 0)
    monkeypatch.setattr(logprobs, "_FEWEST_ROWS", rows)


def _called_as_module(head: nn.Linear) -> nn.Linear:
    """A hook makes the head one that has to be called."""
    head.register_forward_hook(lambda *_: None)
    return head


def _head(dtype: torch.dtype) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(1)
    head = nn.Linear(6, 11, dtype=dtype)
    return head, torch.randn(20, 6, dtype=dtype, requires_grad=True), torch.randint(0, 11, (20,))


def _expected(head: nn.Linear, states: Tensor, targets: Tensor, scale: LogitScale, weights: Tensor) -> list[Tensor]:
    """Log-probs and the gradients of their weighted sum by the states, the weight and the bias, in float64."""
    inputs = [tensor.detach().double().requires_grad_() for tensor in (states, head.weight, head.bias)]
    logits = scale.factor * nn.functional.linear(*inputs)
    if scale.soft_cap is not None:
        logits = torch.tanh(logits / scale.soft_cap) * scale.soft_cap
    logps = torch.log_softmax(logits, -1)[range(len(targets)), targets]
    return [logps, *torch.autograd.grad((logps * weights.double()).sum(), inputs)]


@pytest.mark.parametrize("kind", ["plain", "called", "frozen"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_any_chunk_gives_the_same_gradient(
    scale: LogitScale, chunk: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen head gets none, and passes the states theirs."""
    _set_chunk(monkeypatch, chunk)
    head, states, targets = _head(torch.float64)
    if kind == "called":
        _called_as_module(head)
    head.requires_grad_(kind != "frozen")
    weights = torch.randn(20, dtype=torch.float64)
    logps = token_logprobs(states, targets, head, scale, 11)
    (logps * weights).sum().backward()
    assert (head.weight.grad is None) == (head.bias.grad is None) == (kind == "frozen")
    found = [logps, states.grad] if kind == "frozen" else [logps, states.grad, head.weight.grad, head.bias.grad]
    for ours, own in zip(found, _expected(head, states, targets, scale, weights), strict=False):
        torch.testing.assert_close(ours, own, rtol=0, atol=1e-12)


@pytest.mark.parametrize("head", ["plain", "frozen", "called"])
@pytest.mark.parametrize(
    ("dtype", "products"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)],
)
@pytest.mark.parametrize("scale", [LogitScale(), LogitScale(2.0, soft_cap=3.0)])
def test_nothing_grows_with_the_tokens_but_the_states(
    scale: LogitScale, dtype: torch.dtype, products: torch.dtype, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes of a chunk are those that its rows are chosen by, and those beside it what the module says."""
    monkeypatch.setattr(widened, "multiplies_in_bf16", lambda _: products == torch.bfloat16)
    vocab, width, rows, count = 2000, 4, 32, 640
    _set_chunk(monkeypatch, rows)
    layer = nn.Linear(width, vocab, bias=False, dtype=dtype).requires_grad_(head != "frozen")
    if head == "called":
        _called_as_module(layer)
    states = torch.randn(count, width, dtype=dtype, requires_grad=True)
    targets = torch.zeros(count, dtype=torch.int64)
    layer.weight.grad = torch.zeros_like(layer.weight) if head != "frozen" else None
    with LiveBytes() as seen:
        token_logprobs(states, targets, layer, scale, vocab).sum().backward()
    per_logit = logprobs._CALLED_BYTES if head == "called" else plain_bytes_per_logit(products, scale)
    chunk = per_logit * rows * vocab
    copy = 0 if products == dtype else products.itemsize
    each = {"frozen": copy, "plain": copy + 4 + dtype.itemsize, "called": 2 * dtype.itemsize}
    of_weight = each[head] * vocab * width
    of_states = 40 * count * width  # states, gradients and log-probs; all logits would be 4 * count * vocab
    assert seen.peak <= chunk + of_weight + of_states < 4 * count * vocab
    assert seen.peak >= chunk * (0.6 if head == "called" else 1)


def test_a_head_whose_bias_alone_is_trained_is_not_frozen() -> None:
    head, states, targets = _head(torch.float64)
    head.weight.requires_grad_(False)
    token_logprobs(states, targets, head, LogitScale(), 11).sum().backward()
    _, by_states, _, by_bias = _expected(head, states, targets, LogitScale(), torch.ones(20))
    assert states.grad is not None
    assert head.bias.grad is not None
    torch.testing.assert_close(states.grad, by_states, rtol=0, atol=1e-12)
    torch.testing.assert_close(head.bias.grad, by_bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("trained", "gradient", "products"), [(True, True, 4), (False, True, 2), (False, False, 1)])
@pytest.mark.parametrize("on_cuda", [False, True])
def test_products_of_a_chunk(
    on_cuda: bool, trained: bool, gradient: bool, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set_chunk(monkeypatch, 5)
    if on_cuda:
        _emulate_cuda_products(monkeypatch)
    head, states, targets = _head(torch.bfloat16)
    head.requires_grad_(trained)
    with _Products() as seen, torch.set_grad_enabled(gradient):
        logps = token_logprobs(states, targets, head, LogitScale(), 11)
        if gradient:
            logps.sum().backward()
    assert seen.count == 4 * products
    assert logps.requires_grad == gradient


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("on_cuda", [False, True])
def test_bf16_products_are_right_to_their_rounding(
    on_cuda: bool, trained: bool, scale: LogitScale, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 weights under bf16 autocast; their gradient comes in float32, and on CUDA no logit is rounded to bf16."""
    _set_chunk(monkeypatch, 7)
    if on_cuda:
        _emulate_cuda_products(monkeypatch)
    head, states, targets = _head(torch.float32)
    with torch.no_grad():
        for tensor in (states, head.weight, head.bias):
            tensor.copy_(tensor.bfloat16())
    head.requires_grad_(trained)
    weights = torch.randn(20)
    with _Products(), torch.autocast("cpu", torch.bfloat16):
        logps = token_logprobs(states, targets, head, scale, 11)
        (logps * weights).sum().backward()
    expected = _expected(head, states, targets, scale, weights)
    found = [logps, states.grad, head.weight.grad, head.bias.grad] if trained else [logps, states.grad]
    for ours, exact in zip(found, expected, strict=False):
        assert ours is not None
        assert ours.dtype == torch.float32
        assert float(((ours - exact).norm() / exact.norm()).detach()) < 1e-2
    if on_cuda:
        torch.testing.assert_close(logps.detach().double(), expected[0], rtol=0, atol=1e-5)


class _Card:
    """A card's memory queries, answered from given numbers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, free: float, cached: float = 0) -> None:
        self.asked = 0
        self._free = int(free)
        monkeypatch.setattr(torch.cuda, "mem_get_info", self._mem_get_info)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: int(7e9 + cached))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: int(7e9))

    def _mem_get_info(self, _: torch.device) -> tuple[int, int]:
        self.asked += 1
        return self._free, int(80e9)


@pytest.mark.parametrize(
    ("free", "cached", "vocab", "rows"),
    [
        (20e9, 0, 128256, 4096),  # 3.2 GB a chunk
        (1e9, 19e9, 128256, 4096),
        (8e9, 0, 128256, 2048),
        (60e9, 0, 32000, 4096),
        (1e9, 0, 128256, 256),
        (0, 0, 262144, 128),
    ],
)
def test_rows_of_a_chunk_on_a_card_follow_its_free_memory(
    free: float, cached: float, vocab: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Card(monkeypatch, free=free, cached=cached)
    per_logit = plain_bytes_per_logit(torch.bfloat16, LogitScale())
    assert per_logit == 6
    assert chunk_rows(torch.device("cuda", 0), vocab, per_logit) == rows
    assert rows == 128 or rows * vocab * per_logit <= (free + cached) / 4


def test_a_deterministic_run_sums_in_the_same_order_whatever_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    card = _Card(monkeypatch, free=1e9)
    torch.use_deterministic_algorithms(True)
    try:
        assert chunk_rows(torch.device("cuda", 0), 128256, 6) == 2048
    finally:
        torch.use_deterministic_algorithms(False)
    assert card.asked == 0


@pytest.mark.parametrize("plain", [True, False])
def test_a_card_is_asked_for_its_memory_once_a_forward_pass(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    card = _Card(monkeypatch, free=0)
    rows = chunk_rows
    monkeypatch.setattr(logprobs, "chunk_rows", lambda _, *sizes: rows(torch.device("cuda", 0), *sizes))
    head, states = nn.Linear(6, 11), torch.randn(300, 6, requires_grad=True)
    if not plain:
        _called_as_module(head)
    token_logprobs(states, torch.zeros(300, dtype=torch.int64), head, LogitScale(), 11).sum().backward()
    assert card.asked == 1


@pytest.mark.parametrize(
    ("gradient", "expected"),
    [(True, [4, 4, 4, 4, 2, 2, 4, 4, 4, 4]), (False, [18])],  # forward, then each chunk again in the backward pass
)
def test_no_more_than_a_chunk_of_logits_is_made_and_none_twice_without_gradients(
    gradient: bool, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _set_chunk(monkeypatch, 4 if gradient else 100)
    rows: list[int] = []
    head = nn.Linear(6, 11)
    head.register_forward_hook(lambda *args: rows.append(len(args[2])))
    states = torch.randn(18, 6, requires_grad=True)
    with torch.set_grad_enabled(gradient):
        logps = token_logprobs(states, torch.zeros(18, dtype=torch.int64), head, LogitScale(), 11)
    if gradient:
        logps.sum().backward()
    assert rows == expected
