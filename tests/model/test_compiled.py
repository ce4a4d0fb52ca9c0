"""Compiled layers: one graph for all of them and every micro-batch, the same numbers, and a way back."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.utils import counters

from simpo_cli.model import compile_check
from simpo_cli.model.attention import varlen_cuda
from simpo_cli.model.compile_check import Autocast, choose_compiling, compile_for_training, is_worth_compiling
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy
from simpo_cli.model.self_check import CheckPairs
from simpo_cli.recipe.schema import LoraRecipe
from tests.model.flash_operators import FlashOperators
from tests.model.reference import adapted, random_pairs
from tests.tiny import tiny_model

CPU = torch.device("cpu")
BF16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
PAIRS = random_pairs(8, seed=1)
CHECKED = CheckPairs.of(PAIRS, PAIRS[:5])


class Backend:
    """A compiler's other half: runs the graphs as they are; they may be wrong, or not come about."""

    def __init__(self) -> None:
        self.sizes: list[list[int]] = []  # that each graph was made for
        self.factor = 1.0
        self.error: Exception | None = None

    @property
    def graphs(self) -> int:
        return int(counters["stats"]["unique_graphs"])

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor], **options: Any) -> Any:
        self.sizes.append([int(size) for tensor in inputs if isinstance(tensor, Tensor) for size in tensor.shape])
        if self.error is not None:
            raise self.error
        run = lookup_backend("aot_eager")(graph, inputs, **options)
        if self.factor == 1.0:
            return run
        return lambda *args: tuple(output * self.factor for output in run(*args))


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """The compiler without the part that writes machine code, which takes its time."""
    found, compile_module = Backend(), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compile_module(self, backend=found, **options))
    torch.compiler.reset()
    counters.clear()
    yield found
    torch.compiler.reset()


def _policy(name: str = "llama", *, lora: bool = False, checkpointing: bool = False, **changes: Any) -> Policy:
    model = tiny_model(name, **changes)
    policy = Policy(adapted(model, LoraRecipe(rank=4)) if lora else model, "shared_prefix").train()
    if checkpointing:
        policy.recompute_activations()
    return policy


def _step(policy: Policy, seed: int) -> tuple[Tensor, Tensor]:
    """Log-probs and gradient of a micro-batch of one to five pairs."""
    policy.zero_grad()
    logps = policy(pack(random_pairs(1 + seed % 5, seed=seed), CPU))
    torch.autograd.backward((logps * torch.linspace(0, 1, len(logps))).sum())
    return logps.detach(), torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def _require_same_steps(policy: Policy, eager: Sequence[tuple[Tensor, Tensor]]) -> None:
    for seed, (logps, gradient) in enumerate(eager):
        ours, ours_gradient = _step(policy, seed)
        torch.testing.assert_close(ours, logps, rtol=0, atol=1e-4)
        assert float((ours_gradient - gradient).norm() / gradient.norm()) < 1e-4


def _outcome(
    policy: Policy, wanted: Any = True, autocast: Autocast = nullcontext, *, is_worth_it: bool = False
) -> str | None:
    return choose_compiling(policy, wanted, CHECKED, autocast, is_worth_it=is_worth_it)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_one_graph_serves_all_layers_and_all_micro_batches(lora: bool, checkpointing: bool, backend: Backend) -> None:
    policy = _policy(lora=lora, checkpointing=checkpointing)
    eager = [_step(policy, seed) for seed in range(12)]
    policy.compile_layers(True)
    assert policy.compiled
    _require_same_steps(policy, eager)
    # with adapters nothing before the first layer has a gradient, unless checkpointing asks for one
    assert backend.graphs == (2 if lora and not checkpointing else 1)
    assert not counters["graph_break"]


def test_layers_of_two_kinds_and_scoring_have_graphs_of_their_own(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the way of a card, whose operator takes windows."""
    FlashOperators("2.13").put_in_place(monkeypatch)
    kinds = ["sliding_attention", "full_attention"]
    policy = _policy("gemma3_text", layer_types=kinds, sliding_window=6)
    eager = [_step(policy, seed) for seed in range(6)]
    policy.compile_layers(True, strict=True)
    _require_same_steps(policy, eager)
    assert backend.graphs == 2
    with torch.no_grad():
        for number in (1, 3, 5):
            policy(pack(PAIRS[:number], CPU))
    assert backend.graphs == 4


def test_outside_of_the_policy_the_model_is_not_compiled(backend: Backend) -> None:
    policy = _policy()
    names = list(policy.state_dict())
    _step(policy, 1)
    policy.compile_layers(True)
    _step(policy, 1)
    graphs = backend.graphs
    assert graphs > 0
    assert list(policy.state_dict()) == names
    with policy.untouched() as causal:
        assert all(layer._compiled_call_impl is None for layer in policy.layers)
        causal.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False, pad_token_id=0)
        assert policy.compiled
    _step(policy, 2)
    assert backend.graphs == graphs  # what was compiled before is used again
    policy.compile_layers(False)
    assert not policy.compiled
    assert all(layer._compiled_call_impl is None for layer in policy.layers)


@pytest.mark.parametrize(("autocast", "lora"), [(BF16, False), (nullcontext, True)])
@pytest.mark.usefixtures("backend")
def test_what_computes_the_same_is_used(lora: bool, autocast: Autocast) -> None:
    policy = _policy(lora=lora).eval()
    assert _outcome(policy, autocast=autocast) == "layers compiled"
    assert policy.compiled
    assert not policy.training
    assert all(p.grad is None for p in policy.parameters())


@pytest.mark.parametrize(
    ("factor", "autocast", "said"),
    [
        (1.2, BF16, " would differ by "),
        (1.001, nullcontext, " would differ by "),
        (float("nan"), nullcontext, "log-probs would differ by nan, and rounding makes "),
    ],
)
def test_what_computes_something_else_is_not_used(
    factor: float, autocast: Autocast, said: str, backend: Backend
) -> None:
    backend.factor = factor
    policy = _policy()
    outcome = _outcome(policy, autocast=autocast)
    assert outcome is not None
    assert outcome.startswith("layers not compiled: ")
    assert said in outcome
    assert not policy.compiled
    assert all(p.grad is None for p in policy.parameters())


def test_a_compiler_that_fails_leaves_the_layers_as_they_are(backend: Backend) -> None:
    backend.error = RuntimeError("no room on the card\nand more")
    policy = _policy()
    eager = _step(policy, 3)
    outcome = _outcome(policy)
    assert outcome is not None
    assert outcome.startswith("layers not compiled: ")
    assert "no room on the card" in outcome
    assert "\n" not in outcome
    assert all(torch.equal(a, b) for a, b in zip(_step(policy, 3), eager, strict=True))


@pytest.mark.parametrize(
    ("name", "changes"), [("gemma2", {"attn_logit_softcapping": 5.0}), ("mistral", {"sliding_window": 5})]
)
def test_attention_beside_the_operator_is_not_compiled(name: str, changes: dict[str, Any], backend: Backend) -> None:
    # with its words or without: as the version of torch has it
    assert "UnsupportedAttentionError" in str(_outcome(_policy(name, **changes)))
    assert backend.graphs == 0


@pytest.mark.usefixtures("backend")
def test_what_is_tried() -> None:
    policy = _policy()
    assert _outcome(policy, False, is_worth_it=True) is None
    assert _outcome(policy, "auto") is None
    assert not policy.compiled
    with policy.packed("padded"):
        assert _outcome(policy) == "layers not compiled: rows are padded"
    assert _outcome(policy, "auto", is_worth_it=True) == "layers compiled"


def test_when_compiling_is_worth_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.device("cuda")
    monkeypatch.setattr(compile_check, "find_spec", lambda _: object())
    assert is_worth_compiling(card, 8_000_000_000, 10_000_000)
    assert not is_worth_compiling(card, 135_000_000, 10_000_000)
    assert not is_worth_compiling(CPU, 8_000_000_000, 10_000_000)
    monkeypatch.setattr(compile_check, "find_spec", lambda _: None)
    assert not is_worth_compiling(card, 8_000_000_000, 10_000_000)


def test_a_resumed_run_compiles_for_the_same_sizes(backend: Backend) -> None:
    """Both go by the longest pair, with gradients, whatever they compute first."""
    _outcome(_policy())
    first = list(backend.sizes)
    torch.compiler.reset()
    backend.sizes.clear()
    compile_for_training(_policy(), CHECKED, nullcontext)
    assert first == backend.sizes
    assert backend.graphs == 2  # one each


@pytest.mark.slow
def test_machine_code_computes_the_same() -> None:
    torch.compiler.reset()
    policy = _policy()
    eager = _step(policy, 4)
    assert _outcome(policy) == "layers compiled"
    for ours, own in zip(_step(policy, 4), eager, strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-3, atol=1e-4)
    torch.compiler.reset()


def test_a_compiler_gets_the_answer_about_the_card_as_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot ask the driver itself, and a graph that breaks there would break in every layer."""
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))

    def layer(states: Tensor) -> Tensor:
        return states + 1 if bool(varlen_cuda._has_kernel(states.device)) else states

    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(1)).item() == 1
    torch.compiler.reset()
